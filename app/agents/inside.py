"""Which tool call the present task or thread works in.

It is set when a tool starts and found again inside the tool, in models and tools that it calls in
turn, on whatever thread they run.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field

from langchain_core.messages import AIMessage

from app.agents import reading
from app.runs.deadline import tool_call
from app.runs.model import Tally
from app.runs.tasks import Fence


@dataclass(slots=True)
class SubAgent:
    """An agent that a tool asks in turn, with counts of its own."""

    call_id: str
    name: str
    tally: Tally = field(default_factory=Tally)


@dataclass(slots=True)
class OpenTool:
    """A tool call at work.

    `key` names it to other systems, and its `fence` is passed before it does anything. `node` is
    the graph node that runs it; `sub_agent` the agent that it asks at present. `error` and
    `invalid_arguments` are set by the tool's wrapper when a call fails softly.
    """

    call_id: str
    name: str
    outer: "OpenTool | None"
    started_at: float
    key: str = ""
    fence: Fence | None = None
    node: str | None = None
    sub_agent: SubAgent | None = None
    error: BaseException | None = None
    invalid_arguments: bool = False

    @property
    def parent_of_calls(self) -> str:
        """What a call made inside this tool belongs to."""
        return self.sub_agent.call_id if self.sub_agent else self.call_id

    def answered(self, message: AIMessage | None) -> None:
        """A model that was asked inside this tool answered: the sub-agent's turn, if it has one."""
        if self.sub_agent is not None and message is not None:
            self.sub_agent.tally.iterations += bool(message.tool_calls)
            self.sub_agent.tally.usage += reading.usage(message)


# The tool call that the present task or thread works in.
inside: ContextVar[OpenTool | None] = ContextVar("watchkeeper_tool", default=None)


def enter(tool: OpenTool | None) -> None:
    """Say which tool call the present task or thread works in from now on."""
    inside.set(tool)
    tool_call.set(tool.key if tool else None)
