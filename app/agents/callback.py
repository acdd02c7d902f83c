"""The LangChain callback handler: what LangChain calls back becomes facts about the run.

It is synchronous and `run_inline`: called in order and in the run's own context, so that what it
sets in `on_tool_start` is seen inside sync and async tools. It alone counts iterations. Chain
callbacks are ignored: which tool call a model call belongs to is known from the context.

It also refuses: a model call beyond the run's ceiling, and an answer that is broken. A refusal
is raised through LangChain, before the call is made or a tool is run.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.outputs import LLMResult

from app.agents import reading
from app.agents.broken import Streamed, refuse_if_broken
from app.agents.inside import OpenTool, inside
from app.agents.refusal import CeilingReached, IncompleteAnswer
from app.runs.events import (
    FirstToken,
    IterationCounted,
    ModelCallFinished,
    ModelCallStarted,
    TextRetracted,
    ToolCallFinished,
    ToolCallRejected,
    ToolCallStarted,
)
from app.runs.model import CallOutcome, Rejection
from app.runs.ports import AgentCall

# What AgentExecutor runs in place of a tool when a turn was unusable or named no known tool.
PARSE_ERROR_TOOL = "_Exception"
UNKNOWN_TOOL = "invalid_tool"

P = ParamSpec("P")


@dataclass(slots=True)
class OpenModel:
    """A model call at work."""

    provider: str
    own: bool
    streamed: Streamed | None = None


@dataclass(slots=True)
class Turn:
    """The agent's present turn: what it was asked, and what came of it."""

    messages: Sequence[BaseMessage] = ()
    counted: bool = False
    failed: bool = False


def _watching(callback: Callable[P, None]) -> Callable[P, None]:
    """A fault of ours is counted and never breaks the run; a refusal is meant to."""

    @functools.wraps(callback)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        except (CeilingReached, IncompleteAnswer):
            raise
        except Exception:  # noqa: BLE001 - watching must not break what is watched
            handler = args[0]
            assert isinstance(handler, RunHandler)
            handler.faults += 1

    return guarded


@dataclass(slots=True, eq=False)
class RunHandler(BaseCallbackHandler):
    """One for each run.

    `tools` and `output_tools` are the names the agent may call; `errors` keeps what models
    raised, to tell whose failure ended the run; `faults` counts our own.
    """

    call: AgentCall
    agent: str
    tools: frozenset[str] = frozenset()
    output_tools: frozenset[str] = frozenset()
    clock: Callable[[], float] = time.monotonic
    iterations: int = 0
    model_calls: int = 0
    faults: int = 0
    finishing: bool = False
    ceiling_reached: bool = False
    turn: Turn = field(default_factory=Turn)
    errors: list[BaseException] = field(default_factory=list)
    _models: dict[UUID, OpenModel] = field(default_factory=dict)
    _tools: dict[UUID, OpenTool] = field(default_factory=dict)
    _about: dict[str, str] = field(init=False)

    run_inline = True
    raise_error = True
    ignore_chain = True
    ignore_retriever = True
    ignore_retry = True
    ignore_custom_event = True

    def __post_init__(self) -> None:
        self._about = {"run_id": self.call.run_id, "agent": self.agent}

    @_watching
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

    @_watching
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
        self._refuse_beyond_ceiling()
        self.model_calls += 1
        tool = inside.get()
        now = self.clock()
        if tool is None:
            if self.turn.failed:
                again = self.iterations + 1
                self.call.emit(TextRetracted(**self._about, at=now, iteration=again))
            self.turn = Turn(messages)
        opened = OpenModel(str(metadata.get("ls_provider") or "unknown"), own=tool is None)
        self._models[call_id] = opened
        self.call.emit(
            ModelCallStarted(
                **self._about,
                at=now,
                call_id=str(call_id),
                parent_id=tool.call_id if tool else None,
                iteration=self.iterations + 1,
                provider=opened.provider,
                model=str(metadata.get("ls_model_name") or "unknown"),
            )
        )

    def _refuse_beyond_ceiling(self) -> None:
        """One call is kept back for the last answer."""
        ceiling = 4 * (self.call.iteration_limit + 1) - 1
        if self.model_calls >= ceiling and not self.finishing:
            self.ceiling_reached = True
            raise CeilingReached

    @_watching
    def on_llm_new_token(self, token: Any, *, run_id: UUID, chunk: Any = None, **_: Any) -> None:
        """Arguments are kept as they come; the first token of a call is a fact."""
        opened = self._models.get(run_id)
        if opened is None:
            return
        if opened.streamed is None:
            opened.streamed = Streamed()
            self.call.emit(FirstToken(**self._about, at=self.clock(), call_id=str(run_id)))
        message = getattr(chunk, "message", None)
        if isinstance(message, AIMessageChunk):
            opened.streamed.add(message)

    @_watching
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """A model answered; a turn of the agent that asks for tools is an iteration."""
        opened = self._models.pop(run_id, None)
        if opened is None:
            return
        message = reading.message(response)
        broken = self._refusal(message, opened)
        outcome = CallOutcome.COMPLETED if broken is None else CallOutcome.INCOMPLETE
        self._model_ended(run_id, outcome, broken, message)
        if broken is not None:
            self._failed(broken, opened)
            raise broken
        if message is not None and opened.own:
            self._turn_asks(message)

    def _refusal(self, message: AIMessage | None, opened: OpenModel) -> IncompleteAnswer | None:
        try:
            if message is not None:
                refuse_if_broken(message, opened.provider, opened.streamed)
        except IncompleteAnswer as broken:
            return broken
        return None

    @_watching
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A model raised."""
        opened = self._models.pop(run_id, None)
        if opened is not None:
            self._failed(error, opened)
            self._model_ended(run_id, reading.call_outcome(error, CallOutcome.FAILED), error)

    def _failed(self, error: BaseException, opened: OpenModel) -> None:
        self.errors.append(error)
        if opened.own:
            self.turn.failed = True

    def _model_ended(
        self,
        run_id: UUID,
        outcome: CallOutcome,
        error: BaseException | None,
        message: AIMessage | None = None,
    ) -> None:
        self.call.emit(
            ModelCallFinished(
                **self._about,
                at=self.clock(),
                call_id=str(run_id),
                outcome=outcome,
                usage=reading.usage(message),
                finish_reason=reading.finish_reason(message),
                error=error,
            )
        )

    def _turn_asks(self, message: AIMessage) -> None:
        asked = [c["name"] for c in message.tool_calls if c["name"] not in self.output_tools]
        if asked:
            self._count(len(asked))
        for name in asked:
            if self.tools and name not in self.tools and not self.finishing:
                self._rejected(name, Rejection.UNKNOWN_TOOL)

    @_watching
    def on_agent_action(self, action: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """An AgentExecutor acts on a turn whose model call named no tool calls (ReAct)."""
        if inside.get() is not None:
            return
        unknown = action.tool not in self.tools
        if unknown and not self.turn.counted:
            self._rejected(action.tool, Rejection.UNKNOWN_TOOL)
        self._count(1)

    @_watching
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
        self.call.emit(
            ToolCallStarted(
                **self._about,
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

    @_watching
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool gave a result, or an error that the model is told."""
        opened = self._tools.get(run_id)
        soft = isinstance(output, ToolMessage) and output.status == "error"
        error = opened.error if opened else None
        outcome = CallOutcome.TOOL_ERROR if soft or error else CallOutcome.COMPLETED
        result = str(output.text if isinstance(output, BaseMessage) else output)
        self._tool_ended(run_id, outcome, result, error)

    @_watching
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool raised through its wrapper: an interrupt, or a tool out of the wrapper's reach."""
        self._tool_ended(run_id, reading.call_outcome(error, CallOutcome.TOOL_ERROR), None, error)

    def _tool_ended(
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
        if isinstance(error, ValueError) and type(error).__name__ == "ValidationError":
            self._rejected(opened.name, Rejection.INVALID_ARGS)
        self.call.emit(
            ToolCallFinished(
                **self._about,
                at=self.clock(),
                call_id=opened.call_id,
                outcome=outcome,
                result=result,
                error=error,
            )
        )

    def _rejected(self, tool: str, reason: Rejection) -> None:
        fact = ToolCallRejected(**self._about, at=self.clock(), tool=tool, reason=reason)
        self.call.emit(fact)

    def _count(self, tool_calls: int) -> None:
        """Count the present turn, once, however many calls it asked for."""
        if self.turn.counted or self.finishing:
            return
        self.turn.counted = True
        self.iterations += 1
        self.call.emit(
            IterationCounted(
                **self._about,
                at=self.clock(),
                iteration=self.iterations,
                tool_calls=tool_calls,
            )
        )
