"""The model calls of one run: each reported when it starts and once when it ends."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.outputs import LLMResult

from app.agents import call_ids, endings, reading
from app.agents.asking import Asking
from app.agents.broken import Streamed, refuse_if_broken, refuse_if_cut
from app.agents.endings import Ending
from app.agents.refusal import CeilingReached, IncompleteAnswer
from app.agents.tree import AgentRun, Branch, Place, agent_around, asked_by_tool, tool_around
from app.agents.turns import depth
from app.runs.events import FirstToken, ModelCallFinished, ModelCallRetried, ModelCallStarted
from app.runs.model import NO_USAGE, CallOutcome
from app.runs.ports import AgentCall


@dataclass(slots=True, eq=False)
class OpenModel:
    """A model call; `results` are those of the tools that its reply asked for."""

    asking: Asking
    place: Place
    provider: str
    model: str
    started_at: float
    messages: Sequence[BaseMessage]
    silent: bool = False
    streamed: Streamed | None = None
    reply: AIMessage | None = None
    results: dict[str, ToolMessage] = field(default_factory=dict)

    @property
    def is_turn(self) -> bool:
        """Whether it is presumed to be a turn of an agent of the run's own."""
        return not self.asking.helper and tool_around(self.place) is None


@dataclass(slots=True)
class ModelCalls:
    """`errors` are what models raised, to tell whose failure ended the run.

    `latest` is the turn that was answered last, or asked where none was answered.
    """

    call: AgentCall
    about: Mapping[str, str]
    clock: Callable[[], float]
    refuses: bool = True
    errors: list[BaseException] = field(default_factory=list)
    latest: OpenModel | None = None
    open: dict[UUID, OpenModel] = field(default_factory=dict)

    def start(
        self,
        call_id: UUID,
        asking: Asking,
        messages: Sequence[BaseMessage],
        metadata: Mapping[str, Any],
        parent_id: str | None,
        iteration: int,
        *,
        silent: bool = False,
    ) -> OpenModel:
        """A model is asked."""
        assert asking.place is not None
        opened = OpenModel(
            asking=asking,
            place=asking.place,
            provider=str(metadata.get("ls_provider") or "unknown"),
            model=str(metadata.get("ls_model_name") or "unknown"),
            started_at=self.clock(),
            messages=messages,
            silent=silent,
        )
        self.open[call_id] = opened
        asking.call_ids.append(call_id)
        attempt = self._attempt(opened, iteration) if opened.is_turn else 1
        if opened.is_turn and (self.latest is None or self.latest.reply is None):
            self.latest = opened
        self.call.emit(
            ModelCallStarted(
                **self.about,
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

    def _attempt(self, opened: OpenModel, iteration: int) -> int:
        """Which attempt at its turn it is: one more where the one before failed."""
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
                **self.about,
                at=opened.started_at,
                iteration=iteration,
                provider=opened.provider,
                model=opened.model,
                reason=reason,
            )
        )
        return place.attempts

    def token(self, call_id: UUID, chunk: Any) -> OpenModel | None:
        """Arguments are kept as they come; the first token of a call is a fact."""
        opened = self.open.get(call_id)
        if opened is None:
            return None
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
        return opened

    def end(self, call_id: UUID, response: LLMResult) -> OpenModel | None:
        """A model answered: its call, with the reply. Raises IncompleteAnswer.

        What a helper's model says is the agent's to judge.
        """
        opened = self.open.pop(call_id, None)
        if opened is None:
            return None
        message = reading.message(response)
        ending = endings.of_completion(response) if message is None else endings.of_message(message)
        try:
            if self.refuses and not opened.asking.helper:
                self._refuse(opened, message, ending)
        except IncompleteAnswer as broken:
            self._ended(call_id, opened, CallOutcome.INCOMPLETE, broken, message, ending.reason)
            raise
        self._ended(call_id, opened, CallOutcome.COMPLETED, None, message, ending.reason)
        opened.reply = message
        if opened.is_turn:
            self.latest = opened
        return opened

    def _refuse(self, opened: OpenModel, message: AIMessage | None, ending: Ending) -> None:
        if message is None:
            refuse_if_cut(ending)
        else:
            refuse_if_broken(message, opened.provider, opened.streamed, ending)
            call_ids.complete(message)

    def keep_result(self, output: Any) -> None:
        """A tool gave this: it may be what the latest turn asked for."""
        if self.latest is not None and isinstance(output, ToolMessage):
            self.latest.results[output.tool_call_id] = output

    def fail(self, call_id: UUID, error: BaseException) -> None:
        """A model raised, or its call was given up."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self.cancelled(call_id)
            return
        opened = self.open.pop(call_id, None)
        if opened is not None:
            outcome = reading.call_outcome(error, CallOutcome.FAILED)
            self._ended(call_id, opened, outcome, error, None)

    def cancelled(self, call_id: UUID) -> None:
        """The agent gave a call up; where the run is being stopped, its end closes the call."""
        if self.call.stopping():
            return
        opened = self.open.pop(call_id, None)
        if opened is not None:
            self._ended(call_id, opened, CallOutcome.CANCELLED, None, None)

    def _ended(
        self,
        call_id: UUID,
        opened: OpenModel,
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
            usage = reading.usage(message)
        except TypeError:  # the call has ended all the same, and must be reported
            self.call.fault()
            usage = NO_USAGE
        agent = asked_by_tool(opened.place)
        if agent is not None and agent.sub_agent is not None:
            agent.sub_agent.tally.usage += usage
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
                finish_reason=finish_reason,
                error=error,
                message=message,
            )
        )


def speaker(opened: OpenModel, root: AgentRun) -> str | None:
    """Who speaks in a call: None for the agent that was asked, else a name."""
    tool = tool_around(opened.place)
    agent = agent_around(opened.place)
    if tool is not None:
        asked = asked_by_tool(opened.place)
        return tool.name if asked is None or asked.name is None else asked.name
    if opened.asking.helper:
        return opened.place.node if isinstance(opened.place, Branch) else "helper"
    if agent is None or agent is root:
        return None
    within = agent.within
    return agent.name or (within.node if isinstance(within, Branch) else None)


def iteration_of(place: Place, iterations: int) -> int:
    """The iteration in which a call is made; in a tool, the one after the run's last."""
    return iterations + 1 if tool_around(place) is not None else depth(place) + 1
