"""Facts as OpenTelemetry spans: one tree for each run, under the span of its request."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

from opentelemetry import context as otel
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from app.runs.events import (
    ConversationNotStored,
    Event,
    FirstToken,
    IterationCounted,
    IterationLimitReached,
    ModelCallFinished,
    ModelCallRetried,
    ModelCallStarted,
    RunBeganAnew,
    RunFinished,
    RunHandedOver,
    RunLost,
    RunQueued,
    RunRecovered,
    RunStarted,
    StreamClosed,
    StreamOpened,
    SubAgentFinished,
    SubAgentStarted,
    ToolCallFinished,
    ToolCallRejected,
    ToolCallStarted,
    WorkAbandoned,
)
from app.runs.model import Mode
from app.telemetry import attributes as ends
from app.telemetry import conventions as name
from app.telemetry import redact


@dataclass(slots=True)
class OpenSpan:
    """A span that has not ended, and the context in which it started."""

    span: Span
    before: otel.Context


@dataclass(slots=True)
class Tree:
    """The open spans of one run: its own, and those of its calls by their ids.

    A background run has a `task` span above its own, since it has no request.
    """

    root: OpenSpan
    task: Span | None = None
    calls: dict[str, OpenSpan] = field(default_factory=dict)


class Traces:
    """The sink. It makes a span current where its work executes, for the clients used there.

    `captures_content` is the operator's opt-in to the text of callers, models and tools.
    """

    def __init__(self, tracer: Tracer, *, captures_content: bool = False) -> None:
        self._tracer = tracer
        self._captures_content = captures_content
        self._trees: dict[str, Tree] = {}

    def __call__(self, fact: Event) -> None:
        """Record one fact."""
        match fact:
            case RunQueued():
                self._start_run_span(fact, fact.at)
            case RunStarted():
                self._run_started(fact)
            case RunFinished():
                self._run_finished(fact)
            case RunHandedOver():
                self._end_tree(fact)
            case ModelCallStarted():
                self._model_call_started(fact)
            case FirstToken():
                self._set(fact, fact.call_id, name.FIRST_CHUNK, fact.at - fact.started_at)
            case ModelCallFinished():
                self._model_call_finished(fact)
            case ToolCallStarted():
                self._tool_call_started(fact)
            case ToolCallFinished():
                self._tool_call_finished(fact)
            case SubAgentStarted():
                attributes = {name.OPERATION: name.INVOKE_AGENT, name.AGENT_NAME: fact.name}
                title = f"{name.INVOKE_AGENT} {fact.name}"
                self._start_call_span(fact, title, SpanKind.INTERNAL, attributes)
            case SubAgentFinished():
                self._end_call_span(fact, ends.sub_agent_attributes(fact))
            case IterationCounted() | IterationLimitReached() | ToolCallRejected():
                pass
            case ModelCallRetried() | WorkAbandoned() | StreamOpened() | StreamClosed():
                pass
            case RunBeganAnew() | ConversationNotStored() | RunRecovered() | RunLost():
                pass
            case _:
                assert_never(fact)

    def exemplar(self, fact: Event) -> dict[str, str] | None:
        """Return the ids of the span of a fact, if that span is sampled."""
        tree = self._trees.get(fact.run_id)
        if tree is None:
            return None
        call = tree.calls.get(getattr(fact, "call_id", ""), tree.root)
        ids = call.span.get_span_context()
        if not ids.trace_flags.sampled:
            return None
        return {"trace_id": f"{ids.trace_id:032x}", "span_id": f"{ids.span_id:016x}"}

    def _start_run_span(self, fact: RunQueued | RunStarted | RunFinished, at: float) -> Tree:
        task = self._start_task_span(fact) if isinstance(fact, RunStarted) else None
        span = self._tracer.start_span(
            f"{name.INVOKE_AGENT} {fact.agent}",
            context=set_span_in_context(task) if task else None,
            kind=SpanKind.INTERNAL,
            start_time=self._wall_ns(at),
            attributes={
                name.OPERATION: name.INVOKE_AGENT,
                name.AGENT_NAME: fact.agent,
                name.RUN_ID: fact.run_id,
                name.RUN_MODE: fact.mode,
            },
        )
        get_current_span().set_attribute(name.RUN_ID, fact.run_id)
        tree = Tree(OpenSpan(span, otel.get_current()), task)
        self._trees[fact.run_id] = tree
        return tree

    def _start_task_span(self, fact: RunStarted) -> Span | None:
        """Start a new trace with a link: the trace that submitted the run may have ended."""
        if fact.mode is not Mode.BACKGROUND:
            return None
        return self._tracer.start_span(
            f"{name.RUN_TASK} {fact.agent}",
            context=otel.Context(),
            kind=SpanKind.CONSUMER,
            start_time=self._wall_ns(fact.at),
            links=[Link(ends.context_of(traceparent)) for traceparent in fact.links],
            attributes={
                name.RUN_ID: fact.run_id,
                name.TASK_ATTEMPT: fact.attempt,
                name.TASK_QUEUE_WAIT: fact.stored_s,
            },
        )

    def _run_started(self, fact: RunStarted) -> None:
        tree = self._trees.get(fact.run_id) or self._start_run_span(
            fact, fact.at - fact.queue_wait_s
        )
        span = tree.root.span
        if fact.thread_id is not None:
            span.set_attribute(name.CONVERSATION, fact.thread_id)
        otel.attach(set_span_in_context(span))

    def _run_finished(self, fact: RunFinished) -> None:
        tree = self._trees.get(fact.run_id) or self._start_run_span(fact, fact.at - fact.duration_s)
        span = tree.root.span
        span.set_attributes(ends.run_attributes(fact))
        if fact.outcome in ends.ERRORS:
            span.set_status(Status(StatusCode.ERROR))
        self._end_tree(fact)

    def _end_tree(self, fact: RunFinished | RunHandedOver) -> None:
        tree = self._trees.pop(fact.run_id, None)
        if tree is None:
            return
        for span in (tree.root.span, tree.task):
            if span is not None:
                span.end(self._wall_ns(fact.at))
        if get_current_span() is tree.root.span:
            otel.attach(tree.root.before)

    def _model_call_started(self, fact: ModelCallStarted) -> None:
        attributes: dict[str, AttributeValue] = {
            name.OPERATION: name.CHAT,
            name.PROVIDER: name.PROVIDERS.get(fact.provider, fact.provider),
            name.REQUEST_MODEL: fact.model,
            name.AGENT_NAME: fact.agent,
            name.ITERATION: fact.iteration,
            name.LLM_ATTEMPT: fact.attempt,
        }
        if self._captures_content:
            attributes[name.INPUT_MESSAGES] = redact.messages(fact.messages)
        self._start_call_span(fact, f"{name.CHAT} {fact.model}", SpanKind.CLIENT, attributes)

    def _model_call_finished(self, fact: ModelCallFinished) -> None:
        attributes: dict[str, AttributeValue] = {
            name.INPUT_TOKENS: fact.usage.input_tokens,
            name.OUTPUT_TOKENS: fact.usage.output_tokens,
            name.CALL_OUTCOME: fact.outcome,
        }
        if fact.usage.cache_read:
            attributes[name.CACHE_READ] = fact.usage.cache_read
        if fact.usage.reasoning:
            attributes[name.REASONING] = fact.usage.reasoning
        if fact.finish_reason is not None:
            attributes[name.FINISH_REASONS] = (fact.finish_reason,)
        if self._captures_content and fact.message is not None:
            attributes[name.OUTPUT_MESSAGES] = redact.messages([fact.message])
        self._end_call_span(fact, attributes)

    def _tool_call_started(self, fact: ToolCallStarted) -> None:
        attributes: dict[str, AttributeValue] = {
            name.OPERATION: name.EXECUTE_TOOL,
            name.TOOL_NAME: fact.tool,
            name.TOOL_TYPE: "function",
            name.TOOL_CALL_ID: fact.tool_call_id or fact.call_id,
            name.AGENT_NAME: fact.agent,
            name.ITERATION: fact.iteration,
        }
        if self._captures_content:
            attributes[name.TOOL_ARGUMENTS] = redact.value(fact.arguments)
        self._start_call_span(
            fact, f"{name.EXECUTE_TOOL} {fact.tool}", SpanKind.INTERNAL, attributes
        )

    def _tool_call_finished(self, fact: ToolCallFinished) -> None:
        attributes: dict[str, AttributeValue] = {name.TOOL_OUTCOME: fact.outcome}
        if self._captures_content and fact.result is not None:
            attributes[name.TOOL_RESULT] = redact.value(fact.result)
        self._end_call_span(fact, attributes)

    def _start_call_span(
        self,
        fact: ModelCallStarted | ToolCallStarted | SubAgentStarted,
        title: str,
        kind: SpanKind,
        attributes: Mapping[str, AttributeValue],
    ) -> None:
        tree = self._trees.get(fact.run_id)
        if tree is None:
            return
        parent = tree.calls.get(fact.parent_id or "", tree.root)
        span = self._tracer.start_span(
            title,
            context=set_span_in_context(parent.span),
            kind=kind,
            attributes=attributes,
            start_time=self._wall_ns(fact.at),
        )
        tree.calls[fact.call_id] = OpenSpan(span, otel.get_current())
        otel.attach(set_span_in_context(span))

    def _end_call_span(
        self,
        fact: ModelCallFinished | ToolCallFinished | SubAgentFinished,
        attributes: Mapping[str, AttributeValue],
    ) -> None:
        tree = self._trees.get(fact.run_id)
        opened = tree.calls.pop(fact.call_id, None) if tree is not None else None
        if opened is None:
            return
        span = opened.span
        span.set_attributes(attributes)
        if fact.outcome in ends.CALL_ERRORS:
            span.set_attribute(name.ERROR_TYPE, ends.error_type(fact))
            span.set_status(Status(StatusCode.ERROR))
        span.end(self._wall_ns(fact.at))
        if get_current_span() is span:
            otel.attach(opened.before)

    def _set(self, fact: Event, call_id: str, attribute: str, value: AttributeValue) -> None:
        tree = self._trees.get(fact.run_id)
        if tree is not None and call_id in tree.calls:
            tree.calls[call_id].span.set_attribute(attribute, value)

    def _wall_ns(self, at: float) -> int:
        return int((at + _offset_s()) * 1e9)


def _offset_s() -> float:
    """Return how far the wall clock, which times spans, is ahead of the monotonic one of facts.

    A thread that is delayed between the two readings gets too little, so this takes the most of
    three.
    """
    return max(time.time() - time.monotonic() for _ in range(3))
