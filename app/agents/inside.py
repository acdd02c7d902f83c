"""Which tool call the present task or thread works in.

It is set when a tool starts and found again inside the tool, in models and tools that it calls in
turn, on whatever thread they run.
"""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class OpenTool:
    """A tool call at work.

    `node` is the graph node that runs it; `sub_agent` the id of the agent that it asks in turn.
    `error` and `invalid_arguments` are set by the tool's wrapper when a call fails softly.
    """

    call_id: str
    name: str
    outer: "OpenTool | None"
    started_at: float
    node: str | None = None
    sub_agent: str | None = None
    error: BaseException | None = None
    invalid_arguments: bool = False

    @property
    def parent_of_calls(self) -> str:
        """What a call made inside this tool belongs to."""
        return self.sub_agent or self.call_id


# The tool call that the present task or thread works in.
inside: ContextVar[OpenTool | None] = ContextVar("watchkeeper_tool", default=None)
