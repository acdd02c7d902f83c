"""Whether a model call may be made: the limit on turns, and the ceilings of model calls.

The first turn beyond the limit becomes the last one: it is asked without its tools. Branches that
are at work by then conclude once each; what begins later is refused, and what was said stands.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from app.agents.call_tree import (
    AgentRun,
    Branch,
    CallTree,
    Place,
    ancestors,
    enclosing_agent,
    enclosing_tool,
)
from app.agents.errors import CeilingReached
from app.agents.last_turn import fixed_sentence
from app.agents.pending_model_call import PendingModelCall, is_final_call, requires_tool
from app.agents.turns import TurnCounter, depth
from app.runs.events import IterationLimitReached
from app.runs.model import EarlyStopping, Limit
from app.runs.ports import AgentCall

# Model calls of agents, and as many again of helpers, for each turn that the limit allows.
_CALLS_A_TURN = 4
# So often one node may repeat its last turn, whose answer it has already.
_REPEATS = 3


class Verdict(Enum):
    """What becomes of a model call."""

    MAKE = auto()
    MAKE_LAST = auto()
    ANSWER = auto()


@dataclass(slots=True)
class Limits:
    """Decides for each model call of one run.

    `stopped` is the limit at which the run is, and `last_words` what was said at it; with `cut`
    it was ended there.
    """

    call: AgentCall
    about: Mapping[str, str]
    clock: Callable[[], float]
    tree: CallTree
    turns: TurnCounter
    refuses: bool
    stopped: Limit | None = None
    cut: bool = False
    last_words: AIMessage | None = None
    _agents_calls: int = 0
    _helpers_calls: int = 0
    _repeats: int = 0

    @property
    def fixed_sentence(self) -> str:
        """What stands for an answer that no model wrote."""
        return fixed_sentence(self.call.iteration_limit)

    def admit(self, asking: PendingModelCall) -> Verdict:
        """Decide on a call that is about to be made. Raises CeilingReached."""
        place = asking.place
        assert place is not None
        if not self.refuses:
            return Verdict.MAKE
        from_outside = is_final_call.get()
        if self.cut and not from_outside:
            raise CeilingReached
        self._refuse_too_many(asking, kept_back=not from_outside)
        if from_outside:
            return Verdict.MAKE
        if asking.helper or enclosing_tool(place) is not None:
            return Verdict.MAKE
        if depth(place) < self.call.iteration_limit:
            return Verdict.MAKE
        if isinstance(place, Branch) and place.last_words is not None:
            return self._again(place)
        if not self._may_conclude(place):
            self.stop(Limit.ITERATIONS)
        self.reached(Limit.ITERATIONS)
        asking.last = True
        forced = self.call.early_stopping is EarlyStopping.FORCE
        return Verdict.ANSWER if forced else Verdict.MAKE_LAST

    def reached(self, limit: Limit) -> None:
        """The run is at a limit; it is reported once."""
        if self.stopped is not None:
            return
        self.stopped = limit
        self.call.emit(
            IterationLimitReached(
                **self.about,
                at=self.clock(),
                iteration_limit=self.call.iteration_limit,
                limit=limit,
            )
        )

    def stop(self, limit: Limit) -> None:
        """End the run here. Raises CeilingReached."""
        self.reached(limit)
        self.cut = True
        raise CeilingReached

    def step_begins(self, branch: Branch) -> None:
        """A node that asks no LangChain model is held to the limit by its steps."""
        if self.refuses and branch.depth >= self.call.iteration_limit:
            self.stop(Limit.ITERATIONS)

    def made(self, asking: PendingModelCall) -> None:
        """A call begins: it counts."""
        if asking.helper:
            self._helpers_calls += 1
        else:
            self._agents_calls += 1

    def concluded(self, place: Place, words: AIMessage) -> None:
        """The last turn of a branch ended with these words."""
        now = self.tree.now()
        self.last_words = words
        if isinstance(place, Branch):
            place.last_words = words
        for part in ancestors(place):
            if isinstance(part, AgentRun | Branch) and part.concluded is None:
                part.concluded = now

    def restate(self, messages: Iterable[BaseMessage]) -> None:
        """The agent changed a message after its model, by redaction for example."""
        for message in messages:
            if self.last_words is not None and message.id == self.last_words.id:
                self.last_words = message if isinstance(message, AIMessage) else None

    def kept_tools(self, asking: PendingModelCall) -> frozenset[str]:
        """The tools that the last turn keeps: those by which it gives structured output."""
        kept = asking.tools & self.turns.output_tools
        agent = enclosing_agent(asking.place) if asking.place is not None else None
        if agent is not None and agent is not self.tree.root and requires_tool(asking.options):
            kept |= asking.tools - agent.tools if agent.tools else frozenset()
        return kept

    def _refuse_too_many(self, asking: PendingModelCall, *, kept_back: bool) -> None:
        """One call of the agents' ceiling is kept back for the last answer."""
        ceiling = _CALLS_A_TURN * (self.call.iteration_limit + 1)
        full = (
            self._helpers_calls >= ceiling
            if asking.helper
            else self._agents_calls >= ceiling - kept_back
        )
        if full:
            self.stop(Limit.MODEL_CALLS)

    def _may_conclude(self, place: Place) -> bool:
        """Whether all that it is part of was at work when the first branch concluded."""
        parts: list[Any] = list(ancestors(place))
        return all(
            outer.concluded is None or inner.began < outer.concluded
            for inner, outer in itertools.pairwise(parts)
        ) and (isinstance(place, Branch) or parts[0].concluded is None)

    def _again(self, place: Branch) -> Verdict:
        """A node that asks twice for one turn has its answer already."""
        self._repeats += 1
        if self._repeats > _REPEATS:
            self.stop(Limit.ITERATIONS)
        return Verdict.ANSWER
