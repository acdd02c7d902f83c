"""One wrapper round every tool of every kind: a tool that raises never ends a run.

The model is told the tool's name and the exception's type, never its text; only a
ToolException, which is written for the model, keeps its words. The user's own tool objects stay
as they are: copies are wrapped.
"""

import asyncio
import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool, ToolException
from langgraph.errors import GraphBubbleUp
from pydantic import ValidationError

from app.agents.inside import inside
from app.agents.refusal import CeilingReached


class ToolFailed(ToolException):
    """What the model reads of a tool that raised."""


def guarded(tool: BaseTool) -> BaseTool:
    """A copy of the tool that turns whatever it raises into words for the model."""
    copy = tool.model_copy()
    if isinstance(copy, StructuredTool):
        copy.func = copy.func and _described(_passed_on(copy.func), copy.func)
        copy.coroutine = copy.coroutine and _described(_passed_on(copy.coroutine), copy.coroutine)
    # Instance attributes are found before the methods of the class, in `arun` and in `_arun`'s own
    # fallback to `_run`, so one trick serves StructuredTool, Tool and hand-written classes alike.
    _replace(copy, "_run", _described(_guarded_sync(tool, copy._run), copy._run))
    if type(tool)._arun is not BaseTool._arun:
        _replace(copy, "_arun", _described(_guarded_async(tool, copy._arun), copy._arun))
    _replace(copy, "_parse_input", _guarded_parse(tool, copy._parse_input))
    copy.handle_tool_error = _told(tool)
    copy.handle_validation_error = tool.handle_validation_error or _told_of_arguments(tool)
    return copy


def _replace(tool: BaseTool, method: str, by: Callable[..., Any]) -> None:
    object.__setattr__(tool, method, by)


def _described(wrapper: Callable[..., Any], wrapped: Callable[..., Any]) -> Callable[..., Any]:
    """LangChain reads signature and type hints anew in every call: have them ready."""
    wrapper.__signature__ = inspect.signature(wrapped)  # type: ignore[attr-defined]
    with suppress(NameError, TypeError):  # names that only a type checker knows
        wrapper.__annotations__ = typing.get_type_hints(wrapped, include_extras=True)
    return wrapper


def _passed_on(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, as an object of ours that may be described."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wait(*args: Any, **kwargs: Any) -> Any:
            return await function(*args, **kwargs)

        return wait

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


def _guarded_sync(tool: BaseTool, run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def call(*args: Any, **kwargs: Any) -> Any:
        opened = inside.get()
        if opened is not None and opened.fence is not None:
            opened.fence.passed_in_thread()
        with _caught(tool):
            return _checked(tool, run(*args, **kwargs))

    return call


def _guarded_async(tool: BaseTool, run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    async def call(*args: Any, **kwargs: Any) -> Any:
        opened = inside.get()
        if opened is not None and opened.fence is not None:
            await opened.fence.passed()
        with _caught(tool):
            return _checked(tool, await run(*args, **kwargs))

    return call


def _guarded_parse(tool: BaseTool, parse: Callable[..., Any]) -> Callable[..., Any]:
    """Arguments that do not fit are the model's fault; a validator that raises is the tool's."""

    def call(*args: Any, **kwargs: Any) -> Any:
        opened = inside.get()
        try:
            return parse(*args, **kwargs)
        except ValidationError as raised:
            if opened is not None:
                opened.invalid_arguments = True
            _note(raised)
            raise
        except Exception as raised:  # foreign code: a validator may raise anything
            raise _failed(tool, raised) from raised

    return call


def _checked(tool: BaseTool, result: Any) -> Any:
    """LangChain raises outside the tool when a pair was promised and something else came."""
    is_pair = isinstance(result, tuple) and len(result) == 2
    if tool.response_format == "content_and_artifact" and not is_pair:
        raise ValueError("a tool with artifacts returns a pair")
    return result


@contextmanager
def _caught(tool: BaseTool) -> Iterator[None]:
    try:
        yield
    except (GraphBubbleUp, CeilingReached, ToolFailed):
        raise
    except ToolException as raised:
        _note(raised)
        raise
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
    """The words for a ToolException: the user's own way with them counts, if there is one."""
    own = tool.handle_tool_error

    def words(raised: ToolException) -> Any:
        if isinstance(raised, ToolFailed):
            return str(raised)
        _note(raised)
        if not own:
            return f"Tool {tool.name} failed: {type(raised).__name__}: {raised}"
        if own is True:
            return str(raised) if raised.args else "Tool execution error"
        try:
            return own(raised) if callable(own) else own
        except Exception as failed:  # noqa: BLE001 - foreign code
            return f"Tool {tool.name} failed: {type(failed).__name__}"

    return words


def _told_of_arguments(tool: BaseTool) -> Callable[[Any], str]:
    def words(raised: Any) -> str:
        faults = raised.errors(include_input=False) if isinstance(raised, ValidationError) else []
        said = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in faults)
        return f"Tool {tool.name} failed: ValidationError: {said or 'bad arguments'}"

    return words
