"""The LangChain callback handler: what LangChain calls back becomes facts about the run.

It is synchronous and `run_inline`: called in order and in the run's own context, so that what it
sets in `on_tool_start` is seen inside sync and async tools. It alone counts iterations. Chain
callbacks are ignored: which tool call a model call belongs to is known from the context.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import LLMResult
from langgraph.errors import GraphBubbleUp

from app.runs.events import (
    Emit,
    FirstToken,
    IterationCounted,
    ModelCallFinished,
    ModelCallStarted,
    ToolCallFinished,
    ToolCallStarted,
)
from app.runs.model import CallOutcome, Usage

# What AgentExecutor runs in place of a tool when a turn was unusable or named no known tool.
PARSE_ERROR_TOOL = "_Exception"
UNKNOWN_TOOL = "invalid_tool"


@dataclass(slots=True)
class OpenTool:
    """A tool call at work. `error` is set by the tool's wrapper when it fails softly."""

    call_id: str
    name: str
    outer: "OpenTool | None"
    error: BaseException | None = None


# The tool call that the present task or thread works in.
inside: ContextVar[OpenTool | None] = ContextVar("watchkeeper_tool", default=None)


@dataclass(slots=True)
class Turn:
    """The agent's present turn: what it was asked and whether it was counted."""

    messages: Sequence[BaseMessage] = ()
    counted: bool = False


@dataclass(slots=True)
class RunHandler(BaseCallbackHandler):
    """One for each run. `errors` keeps what models raised, to tell whose failure ended the run."""

    run_id: str
    agent: str
    emit: Emit
    output_tools: frozenset[str] = frozenset()
    clock: Callable[[], float] = time.monotonic
    iterations: int = 0
    finishing: bool = False
    turn: Turn = field(default_factory=Turn)
    errors: list[BaseException] = field(default_factory=list)
    _tools: dict[UUID, OpenTool] = field(default_factory=dict)
    _first_token_due: set[UUID] = field(default_factory=set)

    run_inline = True
    ignore_chain = True
    ignore_retriever = True
    ignore_retry = True
    ignore_custom_event = True

    def __hash__(self) -> int:
        return id(self)

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """The agent, or a sub-agent, asks a chat model."""
        self._model_starts(run_id, messages[0] if messages else (), metadata or {})

    def on_llm_start(
        self,
        serialized: dict[str, Any],
        prompts: list[str],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """The agent asks a model that completes text."""
        self._model_starts(run_id, (), metadata or {})

    def _model_starts(
        self, call_id: UUID, messages: Sequence[BaseMessage], metadata: Mapping[str, Any]
    ) -> None:
        tool = inside.get()
        if tool is None:
            self.turn = Turn(messages)
        self._first_token_due.add(call_id)
        self.emit(
            ModelCallStarted(
                run_id=self.run_id,
                agent=self.agent,
                at=self.clock(),
                call_id=str(call_id),
                parent_id=tool.call_id if tool else None,
                iteration=self.iterations + 1,
                provider=str(metadata.get("ls_provider") or "unknown"),
                model=str(metadata.get("ls_model_name") or "unknown"),
            )
        )

    def on_llm_new_token(self, token: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """The first token of a call is a fact; the others are not."""
        if run_id not in self._first_token_due:
            return
        self._first_token_due.discard(run_id)
        self.emit(
            FirstToken(run_id=self.run_id, agent=self.agent, at=self.clock(), call_id=str(run_id))
        )

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """A model answered; a turn of the agent that asks for tools is an iteration."""
        self._first_token_due.discard(run_id)
        message = _message(response)
        self.emit(
            ModelCallFinished(
                run_id=self.run_id,
                agent=self.agent,
                at=self.clock(),
                call_id=str(run_id),
                outcome=CallOutcome.COMPLETED,
                usage=_usage(message),
                finish_reason=_finish_reason(message),
            )
        )
        if message is not None and inside.get() is None:
            asked = [c for c in message.tool_calls if c["name"] not in self.output_tools]
            if asked:
                self._count(len(asked))

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A model raised."""
        self._first_token_due.discard(run_id)
        self.errors.append(error)
        self.emit(
            ModelCallFinished(
                run_id=self.run_id,
                agent=self.agent,
                at=self.clock(),
                call_id=str(run_id),
                outcome=_call_outcome(error, CallOutcome.FAILED),
                error=error,
            )
        )

    def on_agent_action(self, action: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """An AgentExecutor acts on a turn whose model call named no tool calls (ReAct)."""
        if inside.get() is None:
            self._count(1)

    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        inputs: dict[str, Any] | None = None,
        tool_call_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """A tool begins to work, perhaps on another thread."""
        name = str((serialized or {}).get("name") or "unknown")
        outer = inside.get()
        if name == PARSE_ERROR_TOOL and outer is None:
            self._count(0)
        if name in (PARSE_ERROR_TOOL, UNKNOWN_TOOL):
            return
        opened = OpenTool(str(run_id), name, outer)
        self._tools[run_id] = opened
        inside.set(opened)
        self.emit(
            ToolCallStarted(
                run_id=self.run_id,
                agent=self.agent,
                at=self.clock(),
                call_id=opened.call_id,
                parent_id=outer.call_id if outer else None,
                tool=name,
                iteration=self.iterations,
                arguments=inputs if inputs is not None else input_str,
                own=outer is None,
                tool_call_id=tool_call_id,
            )
        )

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool gave a result, or an error that the model is told."""
        opened = self._tools.get(run_id)
        soft = isinstance(output, ToolMessage) and output.status == "error"
        failed = soft or (opened is not None and opened.error is not None)
        self._tool_ends(
            run_id,
            CallOutcome.TOOL_ERROR if failed else CallOutcome.COMPLETED,
            result=output.text if isinstance(output, BaseMessage) else str(output),
            error=opened.error if opened else None,
        )

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool raised through its wrapper: an interrupt, or a tool out of the wrapper's reach."""
        self._tool_ends(run_id, _call_outcome(error, CallOutcome.TOOL_ERROR), None, error)

    def _tool_ends(
        self,
        run_id: UUID,
        outcome: CallOutcome,
        result: str | None,
        error: BaseException | None,
    ) -> None:
        opened = self._tools.pop(run_id, None)
        if opened is None:
            return
        inside.set(opened.outer)
        self.emit(
            ToolCallFinished(
                run_id=self.run_id,
                agent=self.agent,
                at=self.clock(),
                call_id=opened.call_id,
                outcome=outcome,
                result=result,
                error=error,
            )
        )

    def _count(self, tool_calls: int) -> None:
        """Count the present turn, once, however many calls it asked for."""
        if self.turn.counted or self.finishing:
            return
        self.turn.counted = True
        self.iterations += 1
        self.emit(
            IterationCounted(
                run_id=self.run_id,
                agent=self.agent,
                at=self.clock(),
                iteration=self.iterations,
                tool_calls=tool_calls,
            )
        )


def _message(response: LLMResult) -> AIMessage | None:
    for generation in response.generations[0] if response.generations else ():
        message = getattr(generation, "message", None)
        if isinstance(message, AIMessage):
            return message
    return None


def _usage(message: AIMessage | None) -> Usage:
    spent = message.usage_metadata if message is not None else None
    if not spent:
        return Usage()
    read = spent.get("input_token_details") or {}
    written = spent.get("output_token_details") or {}
    return Usage(
        input_tokens=spent.get("input_tokens") or 0,
        output_tokens=spent.get("output_tokens") or 0,
        cache_read=read.get("cache_read") or 0,
        cache_creation=read.get("cache_creation") or 0,
        reasoning=written.get("reasoning") or 0,
    )


def _finish_reason(message: AIMessage | None) -> str | None:
    said = message.response_metadata if message is not None else {}
    reason = said.get("finish_reason") or said.get("stop_reason")
    return str(reason) if reason else None


def _call_outcome(error: BaseException, otherwise: CallOutcome) -> CallOutcome:
    if isinstance(error, GraphBubbleUp):
        return CallOutcome.INTERRUPTED
    status = getattr(error, "status_code", None)
    return CallOutcome.RATE_LIMITED if status == 429 else otherwise
