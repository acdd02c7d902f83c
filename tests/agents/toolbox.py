"""Tools of every make that raise, return, or do what tools should not."""

from collections.abc import Callable
from typing import Any

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, StructuredTool, Tool, tool
from pydantic import ConfigDict

SECRET = "secret-in-exception"


def structured(error: BaseException | None, **options: Any) -> BaseTool:
    """A sync function as a StructuredTool."""

    def probe(text: str = "") -> str:
        """Probe."""
        if error is not None:
            raise error
        return f"sync {text}"

    return StructuredTool.from_function(probe, **options)


def structured_async(error: BaseException | None, **options: Any) -> BaseTool:
    """An async function as a StructuredTool."""

    async def probe(text: str = "") -> str:
        """Probe."""
        if error is not None:
            raise error
        return f"async {text}"

    return StructuredTool.from_function(coroutine=probe, **options)


def both(error: BaseException | None, **options: Any) -> BaseTool:
    """A StructuredTool with a sync and an async side."""

    def probe(text: str = "") -> str:
        """Probe."""
        if error is not None:
            raise error
        return f"sync {text}"

    async def aprobe(text: str = "") -> str:
        if error is not None:
            raise error
        return f"async {text}"

    return StructuredTool.from_function(probe, aprobe, name="probe", **options)


def classic(error: BaseException | None, **options: Any) -> BaseTool:
    """A sync function as a classic Tool of one text."""

    def probe(text: str = "") -> str:
        if error is not None:
            raise error
        return f"sync {text}"

    return Tool("probe", probe, "Probe.", **options)


class HandWritten(BaseTool):
    """A class of the user's own with a sync side."""

    name: str = "probe"
    description: str = "Probe."
    error: BaseException | None = None

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def _run(self, text: str = "") -> str:
        if self.error is not None:
            raise self.error
        return f"sync {text}"


class HandWrittenAsync(HandWritten):
    """A class of the user's own with both sides."""

    async def _arun(self, text: str = "") -> str:
        if self.error is not None:
            raise self.error
        return f"async {text}"


def hand_written(error: BaseException | None, **options: Any) -> BaseTool:
    """A hand-written tool with `_run` only."""
    return HandWritten(error=error, **options)


def hand_written_async(error: BaseException | None, **options: Any) -> BaseTool:
    """A hand-written tool with `_run` and `_arun`."""
    return HandWrittenAsync(error=error, **options)


def decorated(error: BaseException | None, **options: Any) -> BaseTool:
    """An async function under `@tool`."""

    @tool
    async def probe(text: str = "") -> str:
        """Probe."""
        if error is not None:
            raise error
        return f"async {text}"

    return probe.model_copy(update=options)


Make = Callable[..., BaseTool]
MAKES: tuple[Make, ...] = (
    structured,
    structured_async,
    both,
    classic,
    hand_written,
    hand_written_async,
    decorated,
)
SYNC_MAKES = tuple(m for m in MAKES if m not in (structured_async, decorated))


def call(name: str = "probe", **arguments: Any) -> dict[str, Any]:
    """A tool call as a model makes it."""
    return {"type": "tool_call", "name": name, "args": arguments, "id": "call-1"}


def read(message: Any) -> tuple[str, str]:
    """What the model reads of a tool's message, and its status."""
    assert isinstance(message, ToolMessage)
    return message.text, message.status
