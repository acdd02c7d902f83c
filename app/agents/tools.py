"""One wrapper round every tool of every kind: a tool that raises never ends a run.

The model is told the tool's name and the exception's type, never its text; only a
ToolException, which is written for the model, keeps its words. The user's own tool objects stay
as they are: copies are wrapped.
"""

import asyncio
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from langchain_core.tools import BaseTool, ToolException
from langgraph.errors import GraphBubbleUp
from pydantic import ValidationError

from app.agents.inside import inside
from app.agents.refusal import CeilingReached


class ToolFailed(ToolException):
    """What the model reads of a tool that raised."""


def guarded(tool: BaseTool) -> BaseTool:
    """A copy of the tool that turns whatever it raises into words for the model."""
    copy = tool.model_copy()
    # Instance attributes are found before the methods of the class, in `arun` and in `_arun`'s own
    # fallback to `_run`, so one trick serves StructuredTool, Tool and hand-written classes alike.
    object.__setattr__(copy, "_run", _guarded_sync(tool, copy._run))
    if type(tool)._arun is not BaseTool._arun:
        object.__setattr__(copy, "_arun", _guarded_async(tool, copy._arun))
    copy.handle_tool_error = _told(tool)
    copy.handle_validation_error = tool.handle_validation_error or _told_of_arguments(tool)
    return copy


def _guarded_sync(tool: BaseTool, run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _caught(tool):
            return run(*args, **kwargs)

    return call


def _guarded_async(tool: BaseTool, run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    async def call(*args: Any, **kwargs: Any) -> Any:
        with _caught(tool):
            return await run(*args, **kwargs)

    return call


@contextmanager
def _caught(tool: BaseTool) -> Iterator[None]:
    try:
        yield
    except (GraphBubbleUp, CeilingReached, ToolFailed):
        raise
    except ToolException as raised:
        _note(raised)
        if tool.handle_tool_error:
            raise
        raise ToolFailed(f"Tool {tool.name} failed: {type(raised).__name__}: {raised}") from raised
    except asyncio.CancelledError as raised:
        if _is_being_cancelled():
            raise
        raise _failed(tool, raised) from raised
    except (Exception, SystemExit) as raised:  # foreign code: a tool may raise anything
        raise _failed(tool, raised) from raised


def _failed(tool: BaseTool, raised: BaseException) -> ToolFailed:
    _note(raised)
    return ToolFailed(f"Tool {tool.name} failed: {type(raised).__name__}")


def _is_being_cancelled() -> bool:
    """Whether somebody cancels the present task, or the tool raised CancelledError by itself."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # a thread, which nobody can cancel
        return False
    return task is not None and task.cancelling() > 0


def _note(error: BaseException) -> None:
    """Tell the handler, which sees only the words, what was raised."""
    opened = inside.get()
    if opened is not None:
        opened.error = error


def _told(tool: BaseTool) -> Callable[[ToolException], Any]:
    own = tool.handle_tool_error

    def words(raised: ToolException) -> Any:
        if isinstance(raised, ToolFailed) or own is True:
            return str(raised)
        return own(raised) if callable(own) else own

    return words


def _told_of_arguments(tool: BaseTool) -> Callable[[Any], str]:
    def words(raised: Any) -> str:
        _note(raised)
        faults = raised.errors(include_input=False) if isinstance(raised, ValidationError) else []
        said = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in faults)
        return f"Tool {tool.name} failed: ValidationError: {said or 'bad arguments'}"

    return words
