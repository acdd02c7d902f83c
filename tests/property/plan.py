"""What a small graph of agents does, as plain values: the compiler builds it, the oracle counts it.

A plan knows nothing of LangChain. Each agent has a name of its own, so that a reply, a tool call
and a text say whose they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class ToolKind(StrEnum):
    """What becomes of one tool call."""

    LOOKS = "look"
    RAISES = "broken"
    UNKNOWN = "nowhere"  # no such tool: the call is refused
    MUSES = "muse"  # asks a model by itself, which is nobody's turn
    ASKS = "ask"  # asks an agent of its own


@dataclass(frozen=True)
class Call:
    """One tool call of a turn."""

    kind: ToolKind = ToolKind.LOOKS
    agent: "Agent | None" = None  # of a tool that ASKS

    @property
    def runs(self) -> bool:
        """Whether a tool works for it."""
        return self.kind is not ToolKind.UNKNOWN


@dataclass(frozen=True)
class Turn:
    """One turn that counts: it asks for tools, or is a draft that is sent back if it has none."""

    calls: tuple[Call, ...] = ()
    speaks: bool = False


class Made(StrEnum):
    """How an agent is written."""

    CREATED = "create_agent"
    GRAPH = "graph"  # a node that asks, a ToolNode
    LOOP = "loop"  # a `while` in one function
    EXECUTOR = "executor"


class Cure(StrEnum):
    """What an agent does about a model call that went wrong."""

    RETRY = "retry"
    FALLBACK = "fallback"
    POLICY = "policy"  # the RetryPolicy of the node in which it was made
    LATE = "late"  # the same, of a node that fails after the model has answered
    TWICE = "twice"  # nothing failed: the first answer is thrown away


@dataclass(frozen=True)
class Trouble:
    """A turn, by its number, whose first model calls come to nothing."""

    turn: int
    cure: Cure
    times: int = 1
    halfway: bool = False  # it fails after its first words


class Ask(StrEnum):
    """How a helper is asked."""

    PLAIN = "plain"
    STRUCTURED = "structured"
    BOUND = "bound"  # with a tool of its own that nobody runs
    FAILS = "fails"  # and the agent does without it


class At(StrEnum):
    """Where a helper is asked: in a hook of `create_agent`, or in a node of a graph."""

    BEFORE_AGENT = "before_agent"
    BEFORE_MODEL = "before_model"
    WRAP = "wrap_model_call"
    WRAP_TOOL = "wrap_tool_call"
    AFTER_MODEL = "after_model"
    AFTER_AGENT = "after_agent"
    BESIDE = "beside"
    BETWEEN = "between"  # a node of its own between the tools and the agent


@dataclass(frozen=True)
class Helper:
    """A guard, judge, selector or title: a model call that is no turn."""

    name: str
    ask: Ask = Ask.PLAIN
    at: At = At.BESIDE


@dataclass(frozen=True)
class Agent:
    """Takes its turns, then answers in words."""

    name: str
    turns: tuple[Turn, ...] = ()
    made: Made = Made.CREATED
    trouble: Trouble | None = None
    helper: Helper | None = None
    sync: bool = False  # its own functions and tools are
    named: bool = False


class How(StrEnum):
    """How an agent is part of a graph."""

    NODE = "node"  # the compiled agent is the node
    CALLED = "called"  # a function asks it and gives its last message on
    INLINE = "inline"  # its nodes are the graph's own


@dataclass(frozen=True)
class Works:
    """An agent. `relapses`: so often its node fails afterwards and is tried again."""

    agent: Agent
    how: How = How.NODE
    relapses: int = 0


@dataclass(frozen=True)
class Checks:
    """A node that asks a helper and gives nothing on."""

    helper: Helper


@dataclass(frozen=True)
class Says:
    """A node that writes a text without a model."""

    name: str


@dataclass(frozen=True)
class Raw:
    """A node that asks for tools without a model that LangChain knows, and the tools."""

    name: str
    calls: tuple[Call, ...]


class By(StrEnum):
    """How branches are made."""

    NODES = "nodes"
    SEND = "send"
    COPIES = "copies"  # Send to the same branch, so often
    LANES = "lanes"  # the steps of each branch are nodes of the graph itself
    GATHER = "gather"  # asked by one function at the same time
    MAPS = "maps"  # Send to one node, so often, that asks the model for a text by itself


@dataclass(frozen=True)
class Fans:
    """Branches side by side, and a node without a model that joins their texts."""

    name: str
    branches: tuple["Steps", ...]
    by: By = By.NODES
    copies: int = 1


Step: TypeAlias = Works | Checks | Says | Raw | Fans
Steps: TypeAlias = tuple[Step, ...]


@dataclass(frozen=True)
class Plan:
    """A whole agent. The last step speaks. `limit` is what the caller asks for, if anything."""

    steps: Steps
    limit: int | None = None
    pace: int = 0

    @property
    def bare(self) -> Agent | None:
        """The agent that is served as it is, without a graph round it."""
        (first, *rest) = self.steps
        alone = isinstance(first, Works) and first.how is How.NODE and not rest
        return first.agent if alone and isinstance(first, Works) else None


def within(steps: Steps) -> Iterator[Step]:
    """Every step, those of branches too."""
    for step in steps:
        yield step
        if isinstance(step, Fans):
            for branch in step.branches:
                yield from within(branch)


def in_tools(calls: tuple[Call, ...]) -> Iterator[Agent]:
    """The agents that tools ask, and those that theirs ask."""
    for call in calls:
        if call.agent is not None:
            yield call.agent
            for turn in call.agent.turns:
                yield from in_tools(turn.calls)
