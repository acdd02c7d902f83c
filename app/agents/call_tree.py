"""The tree of a run: which agents are at work in it, in which branch, inside which tools.

LangChain says with every callback which run it stands in. A chain tagged `graph:step:N` is one
execution of a node; the chain around it is the run of a graph, and so an agent. From these ids,
and not from the order of the calls, follows who asks a model and in which branch.

Turns make a chain: steps of an agent add up, branches of one step count as the longest of them,
and an agent that is a node adds to its branch. An agent inside a tool has a chain of its own.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from uuid import UUID

from app.agents.tool_context import OpenToolCall, SubAgent
from app.runs.model import CallOutcome

_STEP = "graph:step:"
# The name that LangGraph gives to the run of a graph that has none.
_NO_NAME = "LangGraph"


@dataclass(slots=True, eq=False)
class AgentRun:
    """One run of a graph or an executor.

    `before` is the length of the chain in which it begins, `done` what its finished steps added,
    and `level` the longest branch of the present step. `tools` are the names that it was seen to
    have, `usual` those that turns of a node had bound, and `drafts` the nodes whose last turn was
    a text, with its step; what models said in `asides` stayed in its node. It `acts` where it is an
    executor. `quiet_steps` counts its steps in a row without a model call, and `last_said` is what
    a model said last in it.
    """

    name: str | None
    within: "Branch | OpenToolCall | None"
    began: int
    before: int = 0
    done: int = 0
    step: str | None = None
    level: int = 0
    quiet_steps: int = 0
    tools: set[str] = field(default_factory=set)
    usual: dict[str, set[str]] = field(default_factory=dict)
    drafts: dict[str, str | None] = field(default_factory=dict)
    asides: set[str] = field(default_factory=set)
    raw_nodes: set[str] = field(default_factory=set)
    # Of branches of the present step that failed: how many calls they made, how the last ended.
    failed: dict[str, tuple[int, CallOutcome | None]] = field(default_factory=dict)
    executions: dict[str, int] = field(default_factory=dict)
    attempts: int = 0
    failure: CallOutcome | None = None
    said: Any = None
    last_said: Any = None
    concluded: int | None = None
    waits: bool = False
    acts: bool = False
    sub_agent: SubAgent | None = None
    # The tool call in which it stands, and the agent that this tool asked.
    tool: OpenToolCall | None = None
    asked_by_tool: "AgentRun | None" = None

    def __post_init__(self) -> None:
        if isinstance(self.within, OpenToolCall):
            self.tool, self.asked_by_tool = self.within, self
        elif self.within is not None:
            self.tool, self.asked_by_tool = self.within.tool, self.within.asked_by_tool

    @property
    def agent(self) -> "AgentRun":
        """The agent that it is."""
        return self

    @property
    def depth(self) -> int:
        """The length of the longest chain of turns up to now, with what came before it."""
        return self.before + self.done + self.level

    def add_turn(self) -> None:
        """Count a turn that belongs to no branch."""
        self.done += 1


@dataclass(slots=True, eq=False)
class Branch:
    """One execution of a node: what its agent does in one step, perhaps beside others.

    `asked` says that a model was asked in it or further in, and `said` is what one asked by the
    node itself said last. `attempts` counts its calls that were turns, and `failure` is how the
    last of them failed; both go on where LangGraph executes the node again, `execution` for
    execution. `concluded` is the moment at which the last turn of the run ended in it, with
    `last_words`.
    """

    agent: AgentRun
    node: str
    key: str
    began: int
    inputs: Any
    execution: int
    turns: int = 0
    asked: bool = False
    attempts: int = 0
    failure: CallOutcome | None = None
    said: Any = None
    concluded: int | None = None
    last_words: Any = None
    tool: OpenToolCall | None = None
    asked_by_tool: AgentRun | None = None

    def __post_init__(self) -> None:
        self.tool, self.asked_by_tool = self.agent.tool, self.agent.asked_by_tool

    @property
    def within(self) -> AgentRun:
        """What it is part of."""
        return self.agent

    @property
    def depth(self) -> int:
        """The length of the chain of turns that leads here."""
        return self.agent.before + self.agent.done + self.turns

    def add_turn(self) -> None:
        """Count a turn of this branch."""
        self.reach(self.turns + 1)

    def reach(self, turns: int) -> None:
        """Make the branch at least this long."""
        self.turns = max(self.turns, turns)
        self.agent.level = max(self.agent.level, self.turns)


Place: TypeAlias = AgentRun | Branch | OpenToolCall


@dataclass(frozen=True, slots=True)
class Chain:
    """Any other chain: it stands where the chain around it stands."""

    name: str | None
    place: Place


class CallTree:
    """Where each callback of one run stands. A place leaves the tree when it ends."""

    def __init__(self, name: str) -> None:
        self._clock = itertools.count(1)
        self._places: dict[UUID, Place | Chain] = {}
        self.root = AgentRun(name, None, 0)
        self._root_id: UUID | None = None

    def now(self) -> int:
        """A moment, for telling what began before and what after."""
        return next(self._clock)

    def place(self, run_id: UUID | None) -> Place:
        """Where a call stands whose parent is this run; the root where that is not known."""
        found = self._places.get(run_id) if run_id is not None else None
        found = found.place if isinstance(found, Chain) else found
        return self.root if found is None else found

    def begin(
        self,
        run_id: UUID,
        parent_id: UUID | None,
        name: str | None,
        tags: Sequence[str],
        metadata: dict[str, Any],
        inputs: Any,
    ) -> Branch | None:
        """A chain begins; a branch is returned where it is one."""
        step = _step(tags)
        if step is None or parent_id is None:
            if self._root_id is None:
                self._root_id, self._places[run_id] = run_id, self.root
            else:
                self._places[run_id] = Chain(name, self.place(parent_id))
            return None
        agent = self.agent(parent_id, metadata)
        if agent.step != step:
            agent.step = step
            agent.done += agent.level
            agent.level = 0
            agent.quiet_steps += 1
            agent.failed.clear()
            agent.executions.clear()
        node = str(metadata.get("langgraph_node") or name)
        key = str(metadata.get("langgraph_checkpoint_ns") or node)
        execution = agent.executions[key] = agent.executions.get(key, 0) + 1
        branch = Branch(agent, node, key, self.now(), inputs, execution)
        branch.attempts, branch.failure = agent.failed.pop(key, (0, None))
        self._places[run_id] = branch
        return branch

    def agent(self, run_id: UUID, metadata: dict[str, Any]) -> AgentRun:
        """The agent whose run this is: it is known as one by its first step, or first action."""
        found = self._places.get(run_id)
        if isinstance(found, AgentRun):
            return found
        within = found.place if isinstance(found, Chain) else self.root
        if isinstance(within, AgentRun):  # a chain around an agent is not another one
            self._places[run_id] = within
            return within
        name = metadata.get("lc_agent_name")
        if name is None and isinstance(found, Chain) and found.name != _NO_NAME:
            name = found.name
        before = within.depth if isinstance(within, Branch) else 0
        agent = self._places[run_id] = AgentRun(name, within, self.now(), before)
        return agent

    def tool_begins(self, run_id: UUID, tool: OpenToolCall) -> None:
        """A tool call begins."""
        self._places[run_id] = tool

    def end(self, run_id: UUID) -> Place | None:
        """A chain or a tool call ends: what stands on it, or None for one that is not known."""
        found = self._places.pop(run_id, None)
        if isinstance(found, AgentRun) and isinstance(found.within, Branch):
            branch = found.within
            branch.reach(found.depth - branch.agent.before - branch.agent.done)
        return None if isinstance(found, Chain) else found


def _step(tags: Sequence[str]) -> str | None:
    for tag in tags:
        if tag.startswith(_STEP):
            return tag
    return None


def ancestors(place: Place | None) -> Iterator[Place]:
    """The place, and all that it is part of, up to the outermost agent or the nearest tool."""
    while place is not None:
        yield place
        place = None if isinstance(place, OpenToolCall) else place.within


def enclosing_tool(place: Place) -> OpenToolCall | None:
    """The tool call in which it stands."""
    return place.tool


def enclosing_agent(place: Place) -> AgentRun | None:
    """The innermost agent that it is part of; None for what a tool does by itself."""
    return place.agent


def asked_by_tool(place: Place) -> AgentRun | None:
    """The agent that the nearest tool around it asked; None where it asked none."""
    return place.asked_by_tool
