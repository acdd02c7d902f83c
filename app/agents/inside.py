"""Which tool call the present task or thread works in.

It is set when a tool starts and found again inside the tool, in models and tools that it calls in
turn, on whatever thread they run.
"""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class OpenTool:
    """A tool call at work. `error` is set by the tool's wrapper when it fails softly."""

    call_id: str
    name: str
    outer: "OpenTool | None"
    error: BaseException | None = None


# The tool call that the present task or thread works in.
inside: ContextVar[OpenTool | None] = ContextVar("watchkeeper_tool", default=None)
