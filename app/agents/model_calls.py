"""The model calls of one run: told when they start, told once when they end, refused if broken."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.outputs import LLMResult

from app.agents import call_ids, reading
from app.agents.broken import Streamed, refuse_if_broken
from app.agents.inside import OpenTool, inside
from app.agents.refusal import CeilingReached, IncompleteAnswer
from app.runs.events import FirstToken, ModelCallFinished, ModelCallRetried, ModelCallStarted
from app.runs.model import NO_USAGE, CallOutcome
from app.runs.ports import AgentCall


@dataclass(slots=True)
class OpenModel:
    """A model call at work. Inside a `tool` it is a sub-agent's, or the tool's own."""

    provider: str
    model: str
    started_at: float
    tool: OpenTool | None
    streamed: Streamed | None = None


@dataclass(slots=True)
class Turn:
    """The agent's present turn: what it was asked, and what came of it."""

    messages: Sequence[BaseMessage] = ()
    attempt: int = 1
    counted: bool = False
    unusable: bool = False
    failure: CallOutcome | None = None


@dataclass(slots=True)
class ModelCalls:
    """`errors` keeps what models raised, to tell whose failure ended the run."""

    call: AgentCall
    about: Mapping[str, str]
    clock: Callable[[], float]
    refuses: bool = True
    made: int = 0
    ceiling_reached: bool = False
    turn: Turn = field(default_factory=Turn)
    errors: list[BaseException] = field(default_factory=list)
    # What the last counted turn was asked, and the ids of the calls it asked for.
    basis: Sequence[BaseMessage] = ()
    asked: set[str | None] = field(default_factory=set)
    _open: dict[UUID, OpenModel] = field(default_factory=dict)

    def start(
        self,
        call_id: UUID,
        messages: Sequence[BaseMessage],
        metadata: Mapping[str, Any],
        iteration: int,
        *,
        last: bool,
    ) -> None:
        """A model is asked. Raises CeilingReached; the `last` call is kept back for the answer."""
        tool = inside.get()
        if self.refuses:
            self._refuse_too_many(messages, iteration, own=tool is None, last=last)
        self.made += 1
        opened = OpenModel(
            provider=str(metadata.get("ls_provider") or "unknown"),
            model=str(metadata.get("ls_model_name") or "unknown"),
            started_at=self.clock(),
            tool=tool,
        )
        self._open[call_id] = opened
        attempt = self._begin_turn(messages, opened, iteration) if tool is None else 1
        self.call.emit(
            ModelCallStarted(
                **self.about,
                at=opened.started_at,
                call_id=str(call_id),
                parent_id=tool.parent_of_calls if tool else None,
                iteration=iteration,
                attempt=attempt,
                provider=opened.provider,
                model=opened.model,
                messages=messages,
            )
        )

    def _refuse_too_many(
        self, messages: Sequence[BaseMessage], iteration: int, *, own: bool, last: bool
    ) -> None:
        """One call of the ceiling is kept back for the last answer.

        A turn beyond the limit is stopped from outside where that is seen in time; here it is
        stopped in any case, and what it was asked holds all that the last answer needs.
        """
        limit = self.call.iteration_limit
        beyond_limit = own and not last and iteration > limit and self._goes_on(messages)
        kept_back = 0 if last and own else 1
        if beyond_limit or self.made >= 4 * (limit + 1) - kept_back:
            self.ceiling_reached = True
            if beyond_limit:
                self.basis = messages
            raise CeilingReached

    def _goes_on(self, messages: Sequence[BaseMessage]) -> bool:
        """Whether these messages go on from the counted turn, and are not a middleware's own."""
        answered = {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}
        return bool(self.asked) and self.asked <= answered

    def _begin_turn(
        self, messages: Sequence[BaseMessage], opened: OpenModel, iteration: int
    ) -> int:
        former = self.turn
        attempt = former.attempt + 1 if former.failure else 1
        self.turn = Turn(messages, attempt)
        if former.failure:
            self.call.emit(
                ModelCallRetried(
                    **self.about,
                    at=opened.started_at,
                    iteration=iteration,
                    provider=opened.provider,
                    model=opened.model,
                    reason=former.failure,
                )
            )
        return attempt

    def token(self, call_id: UUID, chunk: Any) -> None:
        """Arguments are kept as they come; the first token of a call is a fact."""
        opened = self._open.get(call_id)
        if opened is None:
            return
        if opened.streamed is None:
            opened.streamed = Streamed()
            self.call.emit(
                FirstToken(
                    **self.about,
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

    def end(self, call_id: UUID, response: LLMResult) -> tuple[AIMessage | None, OpenTool | None]:
        """A model answered: its message, and the tool inside which it was asked.

        Raises IncompleteAnswer.
        """
        opened = self._open.pop(call_id, None)
        if opened is None:
            return None, None
        message = reading.message(response)
        try:
            if message is not None and self.refuses:
                refuse_if_broken(message, opened.provider, opened.streamed)
                call_ids.complete(message)
        except IncompleteAnswer as broken:
            self._ended(call_id, opened, CallOutcome.INCOMPLETE, broken, message)
            raise
        self._ended(call_id, opened, CallOutcome.COMPLETED, None, message)
        return message, opened.tool

    def fail(self, call_id: UUID, error: BaseException) -> None:
        """A model raised."""
        if isinstance(error, asyncio.CancelledError):
            return  # the run is being stopped, and closes what is open with its own outcome
        opened = self._open.pop(call_id, None)
        if opened is not None:
            outcome = reading.call_outcome(error, CallOutcome.FAILED)
            self._ended(call_id, opened, outcome, error, None)

    def _ended(
        self,
        call_id: UUID,
        opened: OpenModel,
        outcome: CallOutcome,
        error: BaseException | None,
        message: AIMessage | None,
    ) -> None:
        if error is not None:
            self.errors.append(error)
        if error is not None and opened.tool is None:
            self.turn.failure = outcome
        try:
            usage = reading.usage(message)
        except TypeError:  # the call has ended all the same, and must be told
            self.call.fault()
            usage = NO_USAGE
        self.call.emit(
            ModelCallFinished(
                **self.about,
                at=self.clock(),
                call_id=str(call_id),
                provider=opened.provider,
                model=opened.model,
                started_at=opened.started_at,
                outcome=outcome,
                usage=usage,
                cost_usd=self.call.price(opened.model, usage),
                finish_reason=reading.finish_reason(message),
                error=error,
                message=message,
            )
        )


def in_sub_agent(tool: OpenTool, metadata: Mapping[str, Any]) -> str | None:
    """The name of the sub-agent that asks, when it is not the tool itself: its node differs."""
    node = metadata.get("langgraph_node")
    if node is None or node == tool.node:
        return None
    return str(metadata.get("lc_agent_name") or tool.name)
