"""Patches LangChain's methods so that we intercept model and tool calls.

Callbacks only see the start and end of a call. They cannot remove its tools, do not see its
cancellation, and cannot catch its exceptions. We therefore wrap, once per process, the methods
that call chat models and tools, the ToolNode method that executes one call, and the methods that
invoke graphs, which may stop at a breakpoint. Calls without our handler are unchanged.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel

from app.agents.handler import breakpoints
from app.agents.handler.interceptor import CallInterceptor
from app.agents.handler.pending_model_call import current_model_call, in_tool_wrapper
from app.agents.handler.tool_guards import ToolFailed, is_being_cancelled

T = TypeVar("T")

_MARK = "__watchkeeper__"
# Names of methods by wrapper. Other wrappers have the name of their method after an underscore.
_METHOD_NAMES = {
    "_arun_one": "_arun_one",
    "_run_one": "_run_one",
    "_graph_ainvoke": "ainvoke",
    "_graph_invoke": "invoke",
}


class InterceptingHandler(BaseCallbackHandler):
    """A handler that intercepts the calls of its runs."""

    def interceptor(self, parent_id: UUID | None) -> CallInterceptor | None:
        """Return the interceptor of a call whose parent is that chain or tool call."""
        raise NotImplementedError


def install_patches() -> None:
    """Patch the libraries' methods. Later calls do nothing."""
    if hasattr(BaseChatModel.ainvoke, _MARK):
        return
    for owner, wraps in (
        (BaseChatModel, (_ainvoke, _invoke, _astream, _stream)),
        (BaseTool, (_arun, _run)),
        (ToolNode, (_arun_one, _run_one)),
        (Pregel, (_graph_ainvoke, _graph_invoke)),
    ):
        for wrap in wraps:
            name = _METHOD_NAMES.get(wrap.__name__, wrap.__name__[1:])
            original = getattr(owner, name)
            wrapped = functools.wraps(original)(wrap(original))
            setattr(wrapped, _MARK, True)
            setattr(owner, name, wrapped)


def _interceptor(callbacks: Any) -> CallInterceptor | None:
    if callbacks is None:
        return None
    handlers = callbacks if isinstance(callbacks, list) else getattr(callbacks, "handlers", ())
    for handler in handlers:
        if isinstance(handler, InterceptingHandler):
            return handler.interceptor(getattr(callbacks, "parent_run_id", None))
    return None


def _callbacks(config: Any) -> Any:
    """Return the callbacks of a call: its own, or those of the enclosing chain."""
    own = config.get("callbacks") if config else None
    return own or (var_child_runnable_config.get() or {}).get("callbacks")


@contextmanager
def _set(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def _ainvoke(original: Callable[..., Any]) -> Callable[..., Any]:
    async def ainvoke(self: BaseChatModel, input: Any, config: Any = None, **options: Any) -> Any:
        interceptor = _interceptor(_callbacks(config))
        if interceptor is None:
            return await original(self, input, config, **options)
        call, options, answer = interceptor.before_model_call(self, options)
        if answer is not None:
            return answer
        token = current_model_call.set(call)
        try:
            reply = await original(self, input, config, **options)
        except asyncio.CancelledError:
            interceptor.model_call_cancelled(call)
            raise
        finally:
            current_model_call.reset(token)
        return interceptor.after_model_call(call, reply)

    return ainvoke


def _invoke(original: Callable[..., Any]) -> Callable[..., Any]:
    def invoke(self: BaseChatModel, input: Any, config: Any = None, **options: Any) -> Any:
        interceptor = _interceptor(_callbacks(config))
        if interceptor is None:
            return original(self, input, config, **options)
        call, options, answer = interceptor.before_model_call(self, options)
        if answer is not None:
            return answer
        with _set(current_model_call, call):
            reply = original(self, input, config, **options)
        return interceptor.after_model_call(call, reply)

    return invoke


def _astream(original: Callable[..., Any]) -> Callable[..., Any]:
    async def intercepted(
        interceptor: CallInterceptor,
        self: BaseChatModel,
        input: Any,
        config: Any,
        options: dict[str, Any],
    ) -> AsyncIterator[Any]:
        call, options, answer = interceptor.before_model_call(self, options)
        if answer is not None:
            yield interceptor.as_chunk(answer)
            return
        stream_filter = interceptor.stream_filter(call)
        async with aclosing(original(self, input, config, **options)) as stream:
            try:
                while True:
                    # A generator runs in its reader's context, so set and reset around each chunk.
                    with _set(current_model_call, call):
                        chunk = await anext(stream)
                    yield stream_filter.filter(chunk)
            except StopAsyncIteration:
                pass
            except asyncio.CancelledError:
                interceptor.model_call_cancelled(call)
                raise
        if (closing_chunk := stream_filter.closing_chunk()) is not None:
            yield closing_chunk

    def astream(self: BaseChatModel, input: Any, config: Any = None, **options: Any) -> Any:
        interceptor = _interceptor(_callbacks(config))
        if interceptor is None:
            return original(self, input, config, **options)
        return intercepted(interceptor, self, input, config, options)

    return astream


def _stream(original: Callable[..., Any]) -> Callable[..., Any]:
    def intercepted(
        interceptor: CallInterceptor,
        self: BaseChatModel,
        input: Any,
        config: Any,
        options: dict[str, Any],
    ) -> Iterator[Any]:
        call, options, answer = interceptor.before_model_call(self, options)
        if answer is not None:
            yield interceptor.as_chunk(answer)
            return
        stream_filter = interceptor.stream_filter(call)
        with closing(original(self, input, config, **options)) as stream:
            while True:
                with _set(current_model_call, call):
                    chunk = next(stream, None)
                if chunk is None:
                    break
                yield stream_filter.filter(chunk)
        if (closing_chunk := stream_filter.closing_chunk()) is not None:
            yield closing_chunk

    def stream(self: BaseChatModel, input: Any, config: Any = None, **options: Any) -> Any:
        interceptor = _interceptor(_callbacks(config))
        if interceptor is None:
            return original(self, input, config, **options)
        return intercepted(interceptor, self, input, config, options)

    return stream


def _arun(original: Callable[..., Any]) -> Callable[..., Any]:
    async def arun(self: BaseTool, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        interceptor = _interceptor(kwargs.get("callbacks"))
        if interceptor is None or not interceptor.guards:
            return await original(self, tool_input, *args, **kwargs)
        token = in_tool_wrapper.set(False)
        try:
            return await original(interceptor.guarded(self), tool_input, *args, **kwargs)
        except asyncio.CancelledError as raised:
            if is_being_cancelled():
                raise  # otherwise the tool cancelled itself
            raise ToolFailed(f"Tool {self.name} failed: CancelledError") from raised
        finally:
            in_tool_wrapper.reset(token)

    return arun


def _run(original: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: BaseTool, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        interceptor = _interceptor(kwargs.get("callbacks"))
        if interceptor is None or not interceptor.guards:
            return original(self, tool_input, *args, **kwargs)
        with _set(in_tool_wrapper, False):
            return original(interceptor.guarded(self), tool_input, *args, **kwargs)

    return run


def _arun_one(original: Callable[..., Any]) -> Callable[..., Any]:
    async def arun_one(self: ToolNode, call: Any, *args: Any, **kwargs: Any) -> Any:
        interceptor = _interceptor(_callbacks(None))
        if interceptor is None or not interceptor.guards:
            return await original(self, call, *args, **kwargs)
        interceptor.tool_node(self)
        token = in_tool_wrapper.set(True)
        try:
            return await original(self, call, *args, **kwargs)
        except GraphBubbleUp:
            raise
        except Exception as raised:  # noqa: BLE001 - foreign code may raise anything
            return interceptor.failure_message(call, raised)
        finally:
            in_tool_wrapper.reset(token)

    return arun_one


def _run_one(original: Callable[..., Any]) -> Callable[..., Any]:
    def run_one(self: ToolNode, call: Any, *args: Any, **kwargs: Any) -> Any:
        interceptor = _interceptor(_callbacks(None))
        if interceptor is None or not interceptor.guards:
            return original(self, call, *args, **kwargs)
        interceptor.tool_node(self)
        try:
            with _set(in_tool_wrapper, True):
                return original(self, call, *args, **kwargs)
        except GraphBubbleUp:
            raise
        except Exception as raised:  # noqa: BLE001 - foreign code may raise anything
            return interceptor.failure_message(call, raised)

    return run_one


def _graph_ainvoke(original: Callable[..., Any]) -> Callable[..., Any]:
    async def ainvoke(self: Any, input: Any, config: Any = None, **options: Any) -> Any:
        result = await original(self, input, config, **options)
        interceptor = _interceptor(_callbacks(config)) if breakpoints.has(self) else None
        if interceptor is not None and await breakpoints.astopped(self, config, result):
            interceptor.stopped_at_breakpoint(self.get_name())
        return result

    return ainvoke


def _graph_invoke(original: Callable[..., Any]) -> Callable[..., Any]:
    def invoke(self: Any, input: Any, config: Any = None, **options: Any) -> Any:
        result = original(self, input, config, **options)
        interceptor = _interceptor(_callbacks(config)) if breakpoints.has(self) else None
        if interceptor is not None and breakpoints.stopped(self, config, result):
            interceptor.stopped_at_breakpoint(self.get_name())
        return result

    return invoke
