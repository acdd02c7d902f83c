"""Which tool call the present task or thread works in.

It is set when a tool starts and found again inside the tool, on whatever thread it runs.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from app.runs.deadline import tool_call
from app.runs.model import Tally
from app.runs.tasks import Fence


@dataclass(slots=True, eq=False)
class SubAgent:
    """An agent that a tool asks in turn, with counts of its own."""

    call_id: str
    name: str
    tally: Tally = field(default_factory=Tally)


@dataclass(slots=True, eq=False)
class OpenToolCall:
    """A tool call at work.

    `within` is its place in the tree of the run, and `parent_id` the tool call or sub-agent that
    it belongs to. `key` names it to other systems, and its `fence` is passed before it does
    anything. `error` and `invalid_arguments` are set by the tool's guard. `open_agents` are the
    agents that it asks at present, by their call ids.
    """

    call_id: str
    name: str
    outer: "OpenToolCall | None"
    within: Any
    parent_id: str | None
    started_at: float
    key: str = ""
    fence: Fence | None = None
    error: BaseException | None = None
    invalid_arguments: bool = False
    agents_asked: int = 0
    open_agents: dict[str, SubAgent] = field(default_factory=dict)
    # As places of the tree have them: a tool is in itself, and no agent's place.
    agent: None = None
    asked_by_tool: None = None

    @property
    def tool(self) -> "OpenToolCall":
        """The tool call in which it stands."""
        return self


# The tool call that the present task or thread works in.
current_tool: ContextVar[OpenToolCall | None] = ContextVar("watchkeeper_tool", default=None)


def enter(tool: OpenToolCall | None) -> None:
    """Note which tool call the present task or thread works in from now on."""
    current_tool.set(tool)
    tool_call.set(tool.key if tool else None)
