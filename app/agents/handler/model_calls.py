"""The model calls of one run: emits a fact when each starts, and one when it ends."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.outputs import LLMResult

from app.agents.errors import CeilingReached, IncompleteAnswer
from app.agents.handler import call_ids
from app.agents.handler.call_tree import (
    AgentRun,
    Branch,
    Place,
    asked_by_tool,
    enclosing_agent,
    enclosing_tool,
)
from app.agents.handler.pending_model_call import PendingModelCall
from app.agents.handler.turns import depth
from app.agents.models import finish_reasons, model_responses
from app.agents.models.finish_reasons import FinishReason
from app.agents.models.incomplete_answers import (
    StreamedArguments,
    raise_if_cut,
    raise_if_incomplete,
)
from app.runs.events import FirstToken, ModelCallFinished, ModelCallRetried, ModelCallStarted
from app.runs.model import NO_USAGE, CallOutcome
from app.runs.ports import AgentCall


@dataclass(slots=True, eq=False)
class OpenModelCall:
    """A model call. `results` are the results of the tool calls in its reply."""

    pending: PendingModelCall
    place: Place
    provider: str
    model: str
    started_at: float
    messages: Sequence[BaseMessage]
    silent: bool = False
    streamed: StreamedArguments | None = None
    reply: AIMessage | None = None
    results: dict[str, ToolMessage] = field(default_factory=dict)

    @property
    def is_turn(self) -> bool:
        """Whether it is presumed to be a turn of an agent outside any tool."""
        return not self.pending.helper and enclosing_tool(self.place) is None


@dataclass(slots=True)
class ModelCalls:
    """The open and latest model calls of one run.

    `errors` are the exceptions of models, to find out whose failure ended the run. `latest` is
    the last turn with a reply, or the last started turn if none has a reply.
    """

    call: AgentCall
    run_fields: Mapping[str, str]
    clock: Callable[[], float]
    enforces: bool = True
    errors: list[BaseException] = field(default_factory=list)
    latest: OpenModelCall | None = None
    open: dict[UUID, OpenModelCall] = field(default_factory=dict)

    def start(
        self,
        call_id: UUID,
        pending: PendingModelCall,
        messages: Sequence[BaseMessage],
        metadata: Mapping[str, Any],
        parent_id: str | None,
        iteration: int,
        *,
        silent: bool = False,
    ) -> OpenModelCall:
        """A model call starts."""
        assert pending.place is not None
        opened = OpenModelCall(
            pending=pending,
            place=pending.place,
            provider=str(metadata.get("ls_provider") or "unknown"),
            model=str(metadata.get("ls_model_name") or "unknown"),
            started_at=self.clock(),
            messages=messages,
            silent=silent,
        )
        self.open[call_id] = opened
        pending.call_ids.append(call_id)
        attempt = self._attempt(opened, iteration) if opened.is_turn else 1
        if opened.is_turn and (self.latest is None or self.latest.reply is None):
            self.latest = opened
        self.call.emit(
            ModelCallStarted(
                **self.run_fields,
                at=opened.started_at,
                call_id=str(call_id),
                parent_id=parent_id,
                iteration=iteration,
                attempt=attempt,
                provider=opened.provider,
                model=opened.model,
                messages=messages,
            )
        )
        return opened

    def _attempt(self, opened: OpenModelCall, iteration: int) -> int:
        """Return the attempt number of the turn: one more if the previous attempt failed."""
        place = opened.place
        if not isinstance(place, AgentRun | Branch):
            return 1
        if place.failure is None:
            place.attempts = 1
            return 1
        place.attempts += 1
        reason, place.failure = place.failure, None
        self.call.emit(
            ModelCallRetried(
                **self.run_fields,
                at=opened.started_at,
                iteration=iteration,
                provider=opened.provider,
                model=opened.model,
                reason=reason,
            )
        )
        return place.attempts

    def token(self, call_id: UUID, chunk: Any) -> OpenModelCall | None:
        """Record streamed arguments. The first token of a call is emitted as a fact."""
        opened = self.open.get(call_id)
        if opened is None:
            return None
        if opened.streamed is None:
            opened.streamed = StreamedArguments()
            self.call.emit(
                FirstToken(
                    **self.run_fields,
                    at=self.clock(),
                    call_id=str(call_id),
                    provider=opened.provider,
                    model=opened.model,
                    started_at=opened.started_at,
                )
            )
        message = getattr(chunk, "message", None)
        if isinstance(message, AIMessageChunk):
            opened.streamed.add(message)
        return opened

    def end(self, call_id: UUID, response: LLMResult) -> OpenModelCall | None:
        """A model replied: return its call. Raises IncompleteAnswer.

        Replies to helpers are not checked: the agent handles them.
        """
        opened = self.open.pop(call_id, None)
        if opened is None:
            return None
        message = model_responses.message(response)
        finish = (
            finish_reasons.of_completion(response)
            if message is None
            else finish_reasons.of_message(message)
        )
        try:
            if self.enforces and not opened.pending.helper:
                self._check(opened, message, finish)
        except IncompleteAnswer as incomplete:
            self._ended(call_id, opened, CallOutcome.INCOMPLETE, incomplete, message, finish.reason)
            raise
        self._ended(call_id, opened, CallOutcome.COMPLETED, None, message, finish.reason)
        opened.reply = message
        if opened.is_turn:
            self.latest = opened
        return opened

    def _check(
        self, opened: OpenModelCall, message: AIMessage | None, finish: FinishReason
    ) -> None:
        if message is None:
            raise_if_cut(finish)
        else:
            raise_if_incomplete(message, opened.provider, opened.streamed, finish)
            call_ids.complete(message)

    def record_result(self, output: Any) -> None:
        """Record a tool result for the latest turn."""
        if self.latest is not None and isinstance(output, ToolMessage):
            self.latest.results[output.tool_call_id] = output

    def fail(self, call_id: UUID, error: BaseException) -> None:
        """A model raised, or its call was cancelled."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self.cancelled(call_id)
            return
        opened = self.open.pop(call_id, None)
        if opened is not None:
            outcome = model_responses.call_outcome(error, CallOutcome.FAILED)
            self._ended(call_id, opened, outcome, error, None)

    def cancelled(self, call_id: UUID) -> None:
        """The agent cancelled a call. If the run is being stopped, its end closes the call."""
        if self.call.stopping():
            return
        opened = self.open.pop(call_id, None)
        if opened is not None:
            self._ended(call_id, opened, CallOutcome.CANCELLED, None, None)

    def _ended(
        self,
        call_id: UUID,
        opened: OpenModelCall,
        outcome: CallOutcome,
        error: BaseException | None,
        message: AIMessage | None,
        finish_reason: str | None = None,
    ) -> None:
        if error is not None and not isinstance(error, CeilingReached):
            self.errors.append(error)
            if opened.is_turn and isinstance(opened.place, AgentRun | Branch):
                opened.place.failure = outcome
        try:
            usage = model_responses.usage(message)
        except TypeError:  # emit the end of the call all the same
            self.call.fault()
            usage = NO_USAGE
        agent = asked_by_tool(opened.place)
        if agent is not None and agent.sub_agent is not None:
            agent.sub_agent.tally.usage += usage
        self.call.emit(
            ModelCallFinished(
                **self.run_fields,
                at=self.clock(),
                call_id=str(call_id),
                provider=opened.provider,
                model=opened.model,
                started_at=opened.started_at,
                outcome=outcome,
                usage=usage,
                cost_usd=self.call.price(opened.model, usage),
                finish_reason=finish_reason,
                error=error,
                message=message,
            )
        )


def agent_name(opened: OpenModelCall, root: AgentRun) -> str | None:
    """Return the name of the calling sub-agent or helper; None for the root agent."""
    tool = enclosing_tool(opened.place)
    agent = enclosing_agent(opened.place)
    if tool is not None:
        asked = asked_by_tool(opened.place)
        return tool.name if asked is None or asked.name is None else asked.name
    if opened.pending.helper:
        return opened.place.node if isinstance(opened.place, Branch) else "helper"
    if agent is None or agent is root:
        return None
    within = agent.within
    return agent.name or (within.node if isinstance(within, Branch) else None)


def iteration_of(place: Place, iterations: int) -> int:
    """Return the iteration of a call; inside a tool, the one after the run's last."""
    return iterations + 1 if enclosing_tool(place) is not None else depth(place) + 1
