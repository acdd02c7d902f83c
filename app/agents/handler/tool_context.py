"""The tool call of the current task or thread.

It is set when a tool starts, and visible inside the tool on any thread.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from app.runs.deadline import tool_call
from app.runs.model import Tally
from app.runs.ports import Fence


@dataclass(slots=True, eq=False)
class SubAgent:
    """An agent that a tool calls, with its own counts."""

    call_id: str
    name: str
    tally: Tally = field(default_factory=Tally)


@dataclass(slots=True, eq=False)
class OpenToolCall:
    """A running tool call.

    `within` is its parent place in the call tree, and `parent_id` the tool call or sub-agent that
    it belongs to. `key` identifies it to other systems. Its `fence` is checked before the tool
    runs. The tool's guard sets `error` and `invalid_arguments`. `open_agents` are the sub-agents
    that it is calling, by call id.
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
    # The attributes of a place in the call tree: a tool is its own tool and has no agent.
    agent: None = None
    asked_by_tool: None = None

    @property
    def tool(self) -> "OpenToolCall":
        """The tool call itself, as every place has its tool."""
        return self


# The tool call of the current task or thread.
current_tool: ContextVar[OpenToolCall | None] = ContextVar("watchkeeper_tool", default=None)


def set_current_tool(tool: OpenToolCall | None) -> None:
    """Set the tool call of the current task or thread."""
    current_tool.set(tool)
    tool_call.set(tool.key if tool else None)
