"""The guard round every tool: the fence before it works, and how its failure is told apart.

A tool that fails raises, so that whatever its agent has for that sees it first: a retry, a
middleware, the ToolNode's own way. What nobody handles becomes words for the model: the tool's
name and the exception's type, never its text; only a ToolException, which is written for the
model, keeps its words. The user's own tool objects stay as they are: copies are called.
"""

import asyncio
import functools
import inspect
import threading
import typing
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool, ToolException
from langgraph.errors import GraphBubbleUp
from pydantic import ValidationError

from app.agents.errors import CeilingReached
from app.agents.tool_context import current_tool
from app.runs import plain
from app.runs.containment import Contained, original
from app.runs.errors import RunError

_GUARDED = "_watchkeeper_guarded"
_COPIES = 256


class ToolFailed(ToolException):
    """Stands for what is no exception of a tool's, as a cancellation of its own or an exit."""


class ToolGuards:
    """Guarded copies of an agent's tools, each made once; of many tools, the latest are kept."""

    def __init__(self) -> None:
        self._copies: OrderedDict[tuple[int, bool], tuple[BaseTool, BaseTool]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, tool: BaseTool, *, words: bool = False) -> BaseTool:
        """The guarded copy of a tool, which speaks of its failure with `words`.

        A guarded copy itself is one.
        """
        if _GUARDED in vars(tool):
            return tool
        key = (id(tool), words)  # tools compare by what they hold: identity is meant
        known = self._copies.get(key)
        if known is not None and known[0] is tool:
            return known[1]
        copy = handled(tool) if words else guarded(tool)
        with self._lock:  # tools are called on threads too
            self._copies[key] = (tool, copy)
            if len(self._copies) > _COPIES:
                self._copies.popitem(last=False)
        return copy


def guarded(tool: BaseTool) -> BaseTool:
    """A copy of the tool that passes the fence before it works, and notes what it raises."""
    copy = tool.model_copy()
    if isinstance(copy, StructuredTool):
        copy.func = copy.func and _described(_passed_on(copy.func), copy.func)
        copy.coroutine = copy.coroutine and _described(_passed_on(copy.coroutine), copy.coroutine)
    # A class written by hand may keep things on itself, so its own object works.
    works: BaseTool = copy if isinstance(copy, StructuredTool) else tool
    # Instance attributes are found before the methods of the class, in `arun` and in `_arun`'s own
    # fallback to `_run`, so one trick serves StructuredTool, Tool and hand-written classes alike.
    _replace(copy, "_run", _described(_guarded_sync(tool, works._run), works._run))
    if type(tool)._arun is not BaseTool._arun:
        _replace(copy, "_arun", _described(_guarded_async(tool, works._arun), works._arun))
    _replace(copy, "_parse_input", _guarded_parse(copy._parse_input))
    _replace(copy, _GUARDED, True)
    return copy


def handled(tool: BaseTool) -> BaseTool:
    """A guarded copy whose failures are words for the model: for an agent that handles none."""
    copy = guarded(tool)
    copy.handle_tool_error = _told(tool)
    copy.handle_validation_error = tool.handle_validation_error or _told_of_arguments(tool)
    for method in ("_run", "_arun"):
        if method in vars(copy):
            _replace(copy, method, _worded(tool, getattr(copy, method)))
    _replace(copy, "_parse_input", _worded_parse(tool, copy._parse_input))
    return copy


def failure_text(name: str, raised: BaseException) -> str:
    """What the model reads of a tool that raised this."""
    if isinstance(raised, ToolFailed):
        return str(raised)
    said = f"Tool {name} failed: {type(raised).__name__}"
    return f"{said}: {plain.text(raised)}" if isinstance(raised, ToolException) else said


def _replace(tool: BaseTool, attribute: str, by: Any) -> None:
    object.__setattr__(tool, attribute, by)


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
        opened = current_tool.get()
        if opened is not None and opened.fence is not None:
            opened.fence.confirm_owned_in_thread()
        with _noted(tool):
            return run(*args, **kwargs)

    return call


def _guarded_async(tool: BaseTool, run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    async def call(*args: Any, **kwargs: Any) -> Any:
        opened = current_tool.get()
        if opened is not None and opened.fence is not None:
            await opened.fence.confirm_owned()
        with _noted(tool):
            return await run(*args, **kwargs)

    return call


def is_being_cancelled() -> bool:
    """Whether somebody cancels the present task.

    A tool works in a task of its own. Where that is cancelled and the one that waits for it is
    not, the tool has cancelled itself.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # a thread, which nobody can cancel
        return False
    return task is not None and task.cancelling() > 0


def _guarded_parse(parse: Callable[..., Any]) -> Callable[..., Any]:
    """Arguments that do not fit are the model's fault."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return parse(*args, **kwargs)
        except ValidationError:
            opened = current_tool.get()
            if opened is not None:
                opened.invalid_arguments = True
            raise

    return call


@contextmanager
def _noted(tool: BaseTool) -> Iterator[None]:
    """Note what a tool raises: a handler that turns it into words hides it from the callbacks."""
    try:
        yield
    except (GraphBubbleUp, CeilingReached, asyncio.CancelledError, GeneratorExit):
        raise
    except ValidationError as raised:  # a ToolNode would take it for one of the arguments
        raise _failed(tool, raised) from raised
    except Exception as raised:  # foreign code: a tool may raise anything
        _note(raised)
        raise
    except (SystemExit, Contained) as raised:  # code that parses arguments exits so
        if not isinstance(original(raised), SystemExit):
            raise
        raise _failed(tool, original(raised)) from raised


def _failed(tool: BaseTool, raised: BaseException) -> ToolFailed:
    _note(raised)
    return ToolFailed(f"Tool {tool.name} failed: {type(raised).__name__}")


def _note(error: BaseException) -> None:
    opened = current_tool.get()
    if opened is not None and not isinstance(error, ToolFailed):
        opened.error = error


def _worded(tool: BaseTool, run: Callable[..., Any]) -> Callable[..., Any]:
    """Raise as a ToolException what a tool raises, so that its own handler makes words of it."""
    checked = functools.partial(_checked, tool)
    if inspect.iscoroutinefunction(run):

        @functools.wraps(run)
        async def wait(*args: Any, **kwargs: Any) -> Any:
            with _as_failure(tool):
                return checked(await _in_own_task(tool, run(*args, **kwargs)))

        return _described(wait, run)

    @functools.wraps(run)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _as_failure(tool):
            return checked(run(*args, **kwargs))

    return _described(call, run)


def _worded_parse(tool: BaseTool, parse: Callable[..., Any]) -> Callable[..., Any]:
    """A validator that raises is the tool's fault."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return parse(*args, **kwargs)
        except ValidationError as raised:
            _note(raised)
            raise
        except Exception as raised:  # foreign code: a validator may raise anything
            raise _failed(tool, raised) from raised

    return call


async def _in_own_task(tool: BaseTool, work: Coroutine[Any, Any, Any]) -> Any:
    """A tool that cancels its own task fails; its executor goes on."""
    task = asyncio.ensure_future(work)
    try:
        return await task
    except asyncio.CancelledError as raised:
        if is_being_cancelled():
            raise
        raise _failed(tool, raised) from raised


@contextmanager
def _as_failure(tool: BaseTool) -> Iterator[None]:
    try:
        yield
    except (GraphBubbleUp, CeilingReached, RunError, ToolException):
        raise
    except Exception as raised:  # foreign code: a tool may raise anything
        raise _failed(tool, raised) from raised


def _checked(tool: BaseTool, result: Any) -> Any:
    """LangChain raises outside the tool when a pair was promised and something else came."""
    is_pair = isinstance(result, tuple) and len(result) == 2
    if tool.response_format == "content_and_artifact" and not is_pair:
        raise ValueError("a tool with artifacts returns a pair")
    return result


def _told(tool: BaseTool) -> Callable[[ToolException], Any]:
    """The words for a ToolException: the user's own way with them counts, if there is one."""
    own = tool.handle_tool_error

    def words(raised: ToolException) -> Any:
        if isinstance(raised, ToolFailed):
            return str(raised)
        _note(raised)
        if not own:
            return failure_text(tool.name, raised)
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
