"""Decides whether a model call may start: the iteration limit, and ceilings of model calls.

The first turn beyond the limit becomes the last one: the model is called without tools. Each
branch that is active then concludes once. Later branches are rejected, and earlier answers stay.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from app.agents.errors import CeilingReached
from app.agents.handler.call_tree import (
    AgentRun,
    Branch,
    CallTree,
    Place,
    ancestors,
    enclosing_agent,
    enclosing_tool,
)
from app.agents.handler.last_turn import fixed_sentence
from app.agents.handler.pending_model_call import PendingModelCall, is_final_call, requires_tool
from app.agents.handler.turns import TurnCounter, depth
from app.runs.events import IterationLimitReached
from app.runs.model import EarlyStopping, Limit
from app.runs.ports import AgentCall

# Ceiling of model calls per allowed turn; agents and helpers each have their own.
_CALLS_A_TURN = 4
# One run may repeat finished last turns this often.
_REPEATS = 3


class Verdict(Enum):
    """The decision about a model call."""

    MAKE = auto()
    MAKE_LAST = auto()
    ANSWER = auto()


@dataclass(slots=True)
class Limits:
    """Decides about each model call of one run.

    `reached_limit` is the limit that the run has reached, and `final_message` the message that
    concluded it. `cut` is True once the run was ended there.
    """

    call: AgentCall
    run_fields: Mapping[str, str]
    clock: Callable[[], float]
    tree: CallTree
    turns: TurnCounter
    enforces: bool
    reached_limit: Limit | None = None
    cut: bool = False
    final_message: AIMessage | None = None
    _agent_calls: int = 0
    _helper_calls: int = 0
    _repeats: int = 0

    @property
    def fixed_sentence(self) -> str:
        """The answer if no model wrote one."""
        return fixed_sentence(self.call.iteration_limit)

    def admit(self, model_call: PendingModelCall) -> Verdict:
        """Decide about a call that is about to start. Raises CeilingReached.

        Calls start later than they are admitted, so an admitted call counts at once. Otherwise
        calls that are made at the same time would use the one reserved for the final answer.
        """
        verdict = self._verdict(model_call)
        if verdict is not Verdict.ANSWER:
            self.count(model_call)
            model_call.counted = True
        return verdict

    def _verdict(self, model_call: PendingModelCall) -> Verdict:
        place = model_call.place
        assert place is not None
        if not self.enforces:
            return Verdict.MAKE
        from_outside = is_final_call.get()
        if self.cut and not from_outside:
            raise CeilingReached
        self._check_ceiling(model_call, reserve_one=not from_outside)
        if from_outside:
            return Verdict.MAKE
        if model_call.helper or enclosing_tool(place) is not None:
            return Verdict.MAKE
        if depth(place) < self.call.iteration_limit:
            return Verdict.MAKE
        if isinstance(place, Branch) and place.final_message is not None:
            return self._repeat(place)
        if not self._may_conclude(place):
            self.stop(Limit.ITERATIONS)
        self.reached(Limit.ITERATIONS)
        model_call.last = True
        forced = self.call.early_stopping is EarlyStopping.FORCE
        return Verdict.ANSWER if forced else Verdict.MAKE_LAST

    def reached(self, limit: Limit) -> None:
        """The run reached a limit. The first one is emitted."""
        if self.reached_limit is not None:
            return
        self.reached_limit = limit
        self.call.emit(
            IterationLimitReached(
                **self.run_fields,
                at=self.clock(),
                iteration_limit=self.call.iteration_limit,
                limit=limit,
            )
        )

    def stop(self, limit: Limit) -> None:
        """End the run at a limit. Raises CeilingReached."""
        self.reached(limit)
        self.cut = True
        raise CeilingReached

    def step_begins(self, branch: Branch) -> None:
        """Apply the limit to the steps of a node that calls no LangChain model."""
        if self.enforces and branch.depth >= self.call.iteration_limit:
            self.stop(Limit.ITERATIONS)

    def count(self, model_call: PendingModelCall) -> None:
        """Count a call that starts, unless it counted when it was admitted."""
        if model_call.counted:
            model_call.counted = False
        elif model_call.helper:
            self._helper_calls += 1
        else:
            self._agent_calls += 1

    def concluded(self, place: Place, message: AIMessage) -> None:
        """The last turn of a branch ended with this message."""
        now = self.tree.now()
        self.final_message = message
        if isinstance(place, Branch):
            place.final_message = message
        for part in ancestors(place):
            if isinstance(part, AgentRun | Branch) and part.concluded is None:
                part.concluded = now

    def update_final_message(self, messages: Iterable[BaseMessage]) -> None:
        """Follow changes that the agent makes to its final message, for example redaction."""
        for message in messages:
            if self.final_message is not None and message.id == self.final_message.id:
                self.final_message = message if isinstance(message, AIMessage) else None

    def last_turn_tools(self, model_call: PendingModelCall) -> frozenset[str]:
        """Return the tools that the last turn keeps: those for structured output."""
        tools = model_call.tools & self.turns.output_tools
        agent = enclosing_agent(model_call.place) if model_call.place is not None else None
        if agent is not None and agent is not self.tree.root and requires_tool(model_call.options):
            tools |= model_call.tools - agent.tools if agent.tools else frozenset()
        return tools

    def _check_ceiling(self, model_call: PendingModelCall, *, reserve_one: bool) -> None:
        """Reject calls beyond the ceiling. One call of agents is reserved for the final answer."""
        ceiling = _CALLS_A_TURN * (self.call.iteration_limit + 1)
        full = (
            self._helper_calls >= ceiling
            if model_call.helper
            else self._agent_calls >= ceiling - reserve_one
        )
        if full:
            self.stop(Limit.MODEL_CALLS)

    def _may_conclude(self, place: Place) -> bool:
        """Whether every enclosing part had started when the first branch concluded."""
        parts: list[Any] = list(ancestors(place))
        return all(
            outer.concluded is None or inner.began_at < outer.concluded
            for inner, outer in itertools.pairwise(parts)
        ) and (isinstance(place, Branch) or parts[0].concluded is None)

    def _repeat(self, place: Branch) -> Verdict:
        """Return the existing answer to a node that repeats its last turn."""
        self._repeats += 1
        if self._repeats > _REPEATS:
            self.stop(Limit.ITERATIONS)
        return Verdict.ANSWER
