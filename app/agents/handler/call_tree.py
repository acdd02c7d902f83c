"""The call tree of a run: its active agents, their branches, and the enclosing tools.

LangChain sends the run id and parent id with every callback. A chain tagged `graph:step:N` is one
execution of a node. Its parent chain is the run of a graph, so it is an agent. These ids, not the
order of calls, determine which agent calls a model, and in which branch.

Turns form a chain. Steps of an agent add up, and parallel branches count as the longest of them.
An agent that is a node extends its branch. An agent inside a tool has its own chain.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from uuid import UUID

from app.agents.handler.tool_context import OpenToolCall, SubAgent
from app.runs.model import CallOutcome

_STEP = "graph:step:"
# LangGraph's name for the run of an unnamed graph.
_NO_NAME = "LangGraph"


@dataclass(slots=True, eq=False)
class AgentRun:
    """One run of a graph or an executor.

    `turns_before` is the length of the chain at its start, `turns_done` the turns of its finished
    steps, and `step_turns` the longest branch of the current step. `tools` are the tool names
    observed in it, and `usual_tools` those bound in turns, by node. `drafts` maps nodes whose last
    turn was a text to its step. `internal_nodes` are nodes whose replies did not leave them, and
    `raw_nodes` are nodes that create turns without a model call. `steps_without_model` counts
    consecutive steps without a model call. `last_reply` is the latest model reply in it.
    """

    name: str | None
    within: "Branch | OpenToolCall | None"
    began_at: int
    turns_before: int = 0
    turns_done: int = 0
    step: str | None = None
    step_turns: int = 0
    steps_without_model: int = 0
    tools: set[str] = field(default_factory=set)
    usual_tools: dict[str, set[str]] = field(default_factory=dict)
    drafts: dict[str, str | None] = field(default_factory=dict)
    internal_nodes: set[str] = field(default_factory=set)
    raw_nodes: set[str] = field(default_factory=set)
    # Failed branches of the current step: number of calls, and how the last one ended.
    failed: dict[str, tuple[int, CallOutcome | None]] = field(default_factory=dict)
    executions: dict[str, int] = field(default_factory=dict)
    attempts: int = 0
    failure: CallOutcome | None = None
    reply: Any = None
    last_reply: Any = None
    concluded: int | None = None
    interrupted: bool = False
    is_executor: bool = False
    sub_agent: SubAgent | None = None
    # The enclosing tool call, and the agent that this tool called.
    tool: OpenToolCall | None = None
    asked_by_tool: "AgentRun | None" = None

    def __post_init__(self) -> None:
        if isinstance(self.within, OpenToolCall):
            self.tool, self.asked_by_tool = self.within, self
        elif self.within is not None:
            self.tool, self.asked_by_tool = self.within.tool, self.within.asked_by_tool

    @property
    def agent(self) -> "AgentRun":
        """The agent itself, as every place has its agent."""
        return self

    @property
    def depth(self) -> int:
        """The longest chain of turns so far, including the turns before this agent."""
        return self.turns_before + self.turns_done + self.step_turns

    def add_turn(self) -> None:
        """Count a turn outside any branch."""
        self.turns_done += 1


@dataclass(slots=True, eq=False)
class Branch:
    """One execution of a node in a step of its agent, perhaps parallel to others.

    `called_model` is True if a model was called in it or below it. `reply` is the last reply to
    the node's own call. `attempts` counts its attempts at the current turn, and `failure` is how
    the last one failed. Both continue if LangGraph retries the node; `execution` counts its
    executions. `concluded` is the moment at which the run's last turn ended in it, with
    `final_message`.
    """

    agent: AgentRun
    node: str
    key: str
    began_at: int
    inputs: Any
    execution: int
    turns: int = 0
    called_model: bool = False
    attempts: int = 0
    failure: CallOutcome | None = None
    reply: Any = None
    concluded: int | None = None
    final_message: Any = None
    tool: OpenToolCall | None = None
    asked_by_tool: AgentRun | None = None

    def __post_init__(self) -> None:
        self.tool, self.asked_by_tool = self.agent.tool, self.agent.asked_by_tool

    @property
    def within(self) -> AgentRun:
        """The enclosing part: its agent."""
        return self.agent

    @property
    def depth(self) -> int:
        """The length of the chain of turns that leads here."""
        return self.agent.turns_before + self.agent.turns_done + self.turns

    def add_turn(self) -> None:
        """Count a turn of this branch."""
        self.extend_to(self.turns + 1)

    def extend_to(self, turns: int) -> None:
        """Extend the branch to at least this many turns."""
        self.turns = max(self.turns, turns)
        self.agent.step_turns = max(self.agent.step_turns, self.turns)


Place: TypeAlias = AgentRun | Branch | OpenToolCall


@dataclass(frozen=True, slots=True)
class Chain:
    """Any other chain: it has the place of its parent chain."""

    name: str | None
    place: Place


class CallTree:
    """The place of each callback of one run. A place is removed when it ends."""

    def __init__(self, name: str) -> None:
        self._clock = itertools.count(1)
        self._places: dict[UUID, Place | Chain] = {}
        self.root = AgentRun(name, None, 0)
        self._root_id: UUID | None = None

    def now(self) -> int:
        """Return a logical time, to order starts and ends."""
        return next(self._clock)

    def place(self, run_id: UUID | None) -> Place:
        """Return the place of a call with this parent; the root if the parent is unknown."""
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
        """A chain starts. Return its branch if it is the execution of a node."""
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
            agent.turns_done += agent.step_turns
            agent.step_turns = 0
            agent.steps_without_model += 1
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
        """Return the agent of this run. Its first step or action shows that it is an agent."""
        found = self._places.get(run_id)
        if isinstance(found, AgentRun):
            return found
        within = found.place if isinstance(found, Chain) else self.root
        if isinstance(within, AgentRun):  # a chain around an agent is not another agent
            self._places[run_id] = within
            return within
        name = metadata.get("lc_agent_name")
        if name is None and isinstance(found, Chain) and found.name != _NO_NAME:
            name = found.name
        turns_before = within.depth if isinstance(within, Branch) else 0
        agent = self._places[run_id] = AgentRun(name, within, self.now(), turns_before)
        return agent

    def tool_begins(self, run_id: UUID, tool: OpenToolCall) -> None:
        """A tool call starts."""
        self._places[run_id] = tool

    def end(self, run_id: UUID) -> Place | None:
        """A chain or a tool call ends: return its place, or None if it has none of its own."""
        found = self._places.pop(run_id, None)
        if isinstance(found, AgentRun) and isinstance(found.within, Branch):
            branch = found.within
            branch.extend_to(found.depth - branch.agent.turns_before - branch.agent.turns_done)
        return None if isinstance(found, Chain) else found


def _step(tags: Sequence[str]) -> str | None:
    for tag in tags:
        if tag.startswith(_STEP):
            return tag
    return None


def ancestors(place: Place | None) -> Iterator[Place]:
    """Yield the place and its ancestors, up to the outermost agent or the nearest tool."""
    while place is not None:
        yield place
        place = None if isinstance(place, OpenToolCall) else place.within


def enclosing_tool(place: Place) -> OpenToolCall | None:
    """Return the enclosing tool call."""
    return place.tool


def enclosing_agent(place: Place) -> AgentRun | None:
    """Return the innermost enclosing agent; None for a tool's own calls."""
    return place.agent


def asked_by_tool(place: Place) -> AgentRun | None:
    """Return the agent that the nearest enclosing tool called, if any."""
    return place.asked_by_tool
