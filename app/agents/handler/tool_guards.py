"""Guards every tool: checks the fence before it runs, and records what it raises.

A failing tool raises, so that the agent's own handling sees it first: a retry, a middleware, the
ToolNode. An unhandled exception becomes text for the model: the tool's name and the exception's
type, never its message. Only a ToolException keeps its message, which is written for the model.
The user's tool objects are not changed: copies are called.
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
from app.agents.handler.tool_context import current_tool
from app.runs import plain
from app.runs.containment import Contained, original
from app.runs.errors import RunError

_GUARDED = "_watchkeeper_guarded"
_COPIES = 256


class ToolFailed(ToolException):
    """Replaces what is not an ordinary exception, such as an exit or a self-cancellation."""


class ToolGuards:
    """Guarded copies of an agent's tools, in a bounded cache."""

    def __init__(self) -> None:
        self._copies: OrderedDict[tuple[int, bool], tuple[BaseTool, BaseTool]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, tool: BaseTool, *, as_text: bool = False) -> BaseTool:
        """Return the guarded copy of a tool. With `as_text`, its failures become text.

        A guarded copy is returned unchanged.
        """
        if _GUARDED in vars(tool):
            return tool
        key = (id(tool), as_text)  # by identity: equal tools may be different objects
        known = self._copies.get(key)
        if known is not None and known[0] is tool:
            return known[1]
        copy = handled(tool) if as_text else guarded(tool)
        with self._lock:  # threads call tools too
            self._copies[key] = (tool, copy)
            if len(self._copies) > _COPIES:
                self._copies.popitem(last=False)
        return copy


def guarded(tool: BaseTool) -> BaseTool:
    """Return a copy of the tool that checks the fence before it runs and records exceptions."""
    copy = tool.model_copy()
    if isinstance(copy, StructuredTool):
        copy.func = copy.func and _described(_rewrapped(copy.func), copy.func)
        copy.coroutine = copy.coroutine and _described(_rewrapped(copy.coroutine), copy.coroutine)
    # A custom class may hold state, so its own object runs.
    target: BaseTool = copy if isinstance(copy, StructuredTool) else tool
    # Instance attributes override methods of the class, in `arun` and in `_arun`'s fallback to
    # `_run`. This works for StructuredTool, Tool and custom classes.
    _replace(copy, "_run", _described(_guarded_sync(tool, target._run), target._run))
    if type(tool)._arun is not BaseTool._arun:
        _replace(copy, "_arun", _described(_guarded_async(tool, target._arun), target._arun))
    _replace(copy, "_parse_input", _guarded_parse(copy._parse_input))
    _replace(copy, _GUARDED, True)
    return copy


def handled(tool: BaseTool) -> BaseTool:
    """Return a guarded copy whose failures become text, for agents that do not handle them."""
    copy = guarded(tool)
    copy.handle_tool_error = _exception_handler(tool)
    copy.handle_validation_error = tool.handle_validation_error or _validation_handler(tool)
    for method in ("_run", "_arun"):
        if method in vars(copy):
            _replace(copy, method, _raising_failures(tool, getattr(copy, method)))
    _replace(copy, "_parse_input", _raising_parse_failures(tool, copy._parse_input))
    return copy


def failure_text(name: str, raised: BaseException) -> str:
    """Return the text for the model about a tool that raised."""
    if isinstance(raised, ToolFailed):
        return str(raised)
    text = f"Tool {name} failed: {type(raised).__name__}"
    return f"{text}: {plain.text(raised)}" if isinstance(raised, ToolException) else text


def _replace(tool: BaseTool, attribute: str, by: Any) -> None:
    object.__setattr__(tool, attribute, by)


def _described(wrapper: Callable[..., Any], wrapped: Callable[..., Any]) -> Callable[..., Any]:
    """Precompute signature and type hints: LangChain reads them in every call."""
    wrapper.__signature__ = inspect.signature(wrapped)  # type: ignore[attr-defined]
    with suppress(NameError, TypeError):  # names that only a type checker knows
        wrapper.__annotations__ = typing.get_type_hints(wrapped, include_extras=True)
    return wrapper


def _rewrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the function, so that we may set attributes on it."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            return await function(*args, **kwargs)

        return call_async

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
        with _recording(tool):
            return run(*args, **kwargs)

    return call


def _guarded_async(tool: BaseTool, run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    async def call(*args: Any, **kwargs: Any) -> Any:
        opened = current_tool.get()
        if opened is not None and opened.fence is not None:
            await opened.fence.confirm_owned()
        with _recording(tool):
            return await run(*args, **kwargs)

    return call


def is_being_cancelled() -> bool:
    """Whether the current task is being cancelled.

    A tool runs in its own task. If that task is cancelled and the waiting one is not, the tool
    cancelled itself.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # a thread, which cannot be cancelled
        return False
    return task is not None and task.cancelling() > 0


def _guarded_parse(parse: Callable[..., Any]) -> Callable[..., Any]:
    """Record invalid arguments as the model's fault."""

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
def _recording(tool: BaseTool) -> Iterator[None]:
    """Record what a tool raises: a handler that turns it into text hides it from callbacks."""
    try:
        yield
    except (GraphBubbleUp, CeilingReached, asyncio.CancelledError, GeneratorExit):
        raise
    except ValidationError as raised:  # a ToolNode would blame the arguments
        raise _failed(tool, raised) from raised
    except Exception as raised:  # foreign code: a tool may raise anything
        _record(raised)
        raise
    except (SystemExit, Contained) as raised:  # argument parsers exit like this
        if not isinstance(original(raised), SystemExit):
            raise
        raise _failed(tool, original(raised)) from raised


def _failed(tool: BaseTool, raised: BaseException) -> ToolFailed:
    _record(raised)
    return ToolFailed(f"Tool {tool.name} failed: {type(raised).__name__}")


def _record(error: BaseException) -> None:
    opened = current_tool.get()
    if opened is not None and not isinstance(error, ToolFailed):
        opened.error = error


def _raising_failures(tool: BaseTool, run: Callable[..., Any]) -> Callable[..., Any]:
    """Convert exceptions of a tool to ToolException, so that its handler turns them into text."""
    checked = functools.partial(_checked, tool)
    if inspect.iscoroutinefunction(run):

        @functools.wraps(run)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with _failures_raised(tool):
                return checked(await _in_own_task(tool, run(*args, **kwargs)))

        return _described(call_async, run)

    @functools.wraps(run)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _failures_raised(tool):
            return checked(run(*args, **kwargs))

    return _described(call, run)


def _raising_parse_failures(tool: BaseTool, parse: Callable[..., Any]) -> Callable[..., Any]:
    """Record a failing validator as the tool's fault."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return parse(*args, **kwargs)
        except ValidationError as raised:
            _record(raised)
            raise
        except Exception as raised:  # foreign code: a validator may raise anything
            raise _failed(tool, raised) from raised

    return call


async def _in_own_task(tool: BaseTool, work: Coroutine[Any, Any, Any]) -> Any:
    """Run in a new task: a tool that cancels its own task fails, and its executor continues."""
    task = asyncio.ensure_future(work)
    try:
        return await task
    except asyncio.CancelledError as raised:
        if is_being_cancelled():
            raise
        raise _failed(tool, raised) from raised


@contextmanager
def _failures_raised(tool: BaseTool) -> Iterator[None]:
    try:
        yield
    except (GraphBubbleUp, CeilingReached, RunError, ToolException):
        raise
    except Exception as raised:  # foreign code: a tool may raise anything
        raise _failed(tool, raised) from raised


def _checked(tool: BaseTool, result: Any) -> Any:
    """Check a promised pair here, since LangChain would raise outside the tool."""
    is_pair = isinstance(result, tuple) and len(result) == 2
    if tool.response_format == "content_and_artifact" and not is_pair:
        raise ValueError("a tool with artifacts returns a pair")
    return result


def _exception_handler(tool: BaseTool) -> Callable[[ToolException], Any]:
    """Return a handler of ToolException that applies the user's own handler, if there is one."""
    own = tool.handle_tool_error

    def failure(raised: ToolException) -> Any:
        if isinstance(raised, ToolFailed):
            return str(raised)
        _record(raised)
        if not own:
            return failure_text(tool.name, raised)
        if own is True:
            return str(raised) if raised.args else "Tool execution error"
        try:
            return own(raised) if callable(own) else own
        except Exception as failed:  # noqa: BLE001 - foreign code
            return f"Tool {tool.name} failed: {type(failed).__name__}"

    return failure


def _validation_handler(tool: BaseTool) -> Callable[[Any], str]:
    def failure(raised: Any) -> str:
        faults = raised.errors(include_input=False) if isinstance(raised, ValidationError) else []
        text = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in faults)
        return f"Tool {tool.name} failed: ValidationError: {text or 'bad arguments'}"

    return failure
