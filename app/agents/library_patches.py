"""Stands around the calls of LangChain's models and tools, where callbacks cannot.

Callbacks see that a call begins and ends. They cannot take tools away from it, are not told that
it was cancelled, and cannot catch what it raises. So the methods by which every chat model and
every tool is called are wrapped once for the process, and the one by which a ToolNode runs one
call. A call that has no handler of ours among its callbacks goes through untouched.
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

from app.agents import breakpoints
from app.agents.interceptor import CallInterceptor
from app.agents.pending_model_call import asking, in_tool_wrapper
from app.agents.tool_guards import ToolFailed, is_being_cancelled

T = TypeVar("T")

_MARK = "__watchkeeper__"
# Methods whose wraps cannot be named like them.
_NAMES = {
    "_arun_one": "_arun_one",
    "_run_one": "_run_one",
    "_graph_ainvoke": "ainvoke",
    "_graph_invoke": "invoke",
}


class InterceptingHandler(BaseCallbackHandler):
    """A handler that stands around the calls of its runs."""

    def around(self, parent_id: UUID | None) -> CallInterceptor | None:
        """What stands around a call that is made inside that chain or tool call."""
        raise NotImplementedError


def install_patches() -> None:
    """Wrap the library's methods; once they are wrapped this does nothing."""
    if hasattr(BaseChatModel.ainvoke, _MARK):
        return
    for owner, wraps in (
        (BaseChatModel, (_ainvoke, _invoke, _astream, _stream)),
        (BaseTool, (_arun, _run)),
        (ToolNode, (_arun_one, _run_one)),
        (Pregel, (_graph_ainvoke, _graph_invoke)),
    ):
        for wrap in wraps:
            name = _NAMES.get(wrap.__name__, wrap.__name__[1:])
            original = getattr(owner, name)
            wrapped = functools.wraps(original)(wrap(original))
            setattr(wrapped, _MARK, True)
            setattr(owner, name, wrapped)


def _found(callbacks: Any) -> CallInterceptor | None:
    if callbacks is None:
        return None
    handlers = callbacks if isinstance(callbacks, list) else getattr(callbacks, "handlers", ())
    for handler in handlers:
        if isinstance(handler, InterceptingHandler):
            return handler.around(getattr(callbacks, "parent_run_id", None))
    return None


def _callbacks(config: Any) -> Any:
    """The callbacks of a call: its own, or those of the chain that it is made in."""
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
        around = _found(_callbacks(config))
        if around is None:
            return await original(self, input, config, **options)
        call, options, answer = around.model_asked(self, options)
        if answer is not None:
            return answer
        token = asking.set(call)
        try:
            reply = await original(self, input, config, **options)
        except asyncio.CancelledError:
            around.model_cancelled(call)
            raise
        finally:
            asking.reset(token)
        return around.model_answered(call, reply)

    return ainvoke


def _invoke(original: Callable[..., Any]) -> Callable[..., Any]:
    def invoke(self: BaseChatModel, input: Any, config: Any = None, **options: Any) -> Any:
        around = _found(_callbacks(config))
        if around is None:
            return original(self, input, config, **options)
        call, options, answer = around.model_asked(self, options)
        if answer is not None:
            return answer
        with _set(asking, call):
            reply = original(self, input, config, **options)
        return around.model_answered(call, reply)

    return invoke


def _astream(original: Callable[..., Any]) -> Callable[..., Any]:
    async def watched(
        around: CallInterceptor,
        self: BaseChatModel,
        input: Any,
        config: Any,
        options: dict[str, Any],
    ) -> AsyncIterator[Any]:
        call, options, answer = around.model_asked(self, options)
        if answer is not None:
            yield around.as_chunk(answer)
            return
        chunks = around.chunks(call)
        async with aclosing(original(self, input, config, **options)) as stream:
            try:
                while True:
                    # A generator works in the context of its reader: what is set here goes again.
                    with _set(asking, call):
                        chunk = await anext(stream)
                    yield chunks.passed(chunk)
            except StopAsyncIteration:
                pass
            except asyncio.CancelledError:
                around.model_cancelled(call)
                raise
        if (rest := chunks.rest()) is not None:
            yield rest

    def astream(self: BaseChatModel, input: Any, config: Any = None, **options: Any) -> Any:
        around = _found(_callbacks(config))
        if around is None:
            return original(self, input, config, **options)
        return watched(around, self, input, config, options)

    return astream


def _stream(original: Callable[..., Any]) -> Callable[..., Any]:
    def watched(
        around: CallInterceptor,
        self: BaseChatModel,
        input: Any,
        config: Any,
        options: dict[str, Any],
    ) -> Iterator[Any]:
        call, options, answer = around.model_asked(self, options)
        if answer is not None:
            yield around.as_chunk(answer)
            return
        chunks = around.chunks(call)
        with closing(original(self, input, config, **options)) as stream:
            while True:
                with _set(asking, call):
                    chunk = next(stream, None)
                if chunk is None:
                    break
                yield chunks.passed(chunk)
        if (rest := chunks.rest()) is not None:
            yield rest

    def stream(self: BaseChatModel, input: Any, config: Any = None, **options: Any) -> Any:
        around = _found(_callbacks(config))
        if around is None:
            return original(self, input, config, **options)
        return watched(around, self, input, config, options)

    return stream


def _arun(original: Callable[..., Any]) -> Callable[..., Any]:
    async def arun(self: BaseTool, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        around = _found(kwargs.get("callbacks"))
        if around is None or not around.guards:
            return await original(self, tool_input, *args, **kwargs)
        token = in_tool_wrapper.set(False)
        try:
            return await original(around.guarded(self), tool_input, *args, **kwargs)
        except asyncio.CancelledError as raised:
            if is_being_cancelled():
                raise
            raise ToolFailed(f"Tool {self.name} failed: CancelledError") from raised
        finally:
            in_tool_wrapper.reset(token)

    return arun


def _run(original: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: BaseTool, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        around = _found(kwargs.get("callbacks"))
        if around is None or not around.guards:
            return original(self, tool_input, *args, **kwargs)
        with _set(in_tool_wrapper, False):
            return original(around.guarded(self), tool_input, *args, **kwargs)

    return run


def _arun_one(original: Callable[..., Any]) -> Callable[..., Any]:
    async def arun_one(self: ToolNode, call: Any, *args: Any, **kwargs: Any) -> Any:
        around = _found(_callbacks(None))
        if around is None or not around.guards:
            return await original(self, call, *args, **kwargs)
        around.tool_node(self)
        token = in_tool_wrapper.set(True)
        try:
            return await original(self, call, *args, **kwargs)
        except GraphBubbleUp:
            raise
        except Exception as raised:  # noqa: BLE001 - foreign code may raise anything
            return around.tool_failed(call, raised)
        finally:
            in_tool_wrapper.reset(token)

    return arun_one


def _run_one(original: Callable[..., Any]) -> Callable[..., Any]:
    def run_one(self: ToolNode, call: Any, *args: Any, **kwargs: Any) -> Any:
        around = _found(_callbacks(None))
        if around is None or not around.guards:
            return original(self, call, *args, **kwargs)
        around.tool_node(self)
        try:
            with _set(in_tool_wrapper, True):
                return original(self, call, *args, **kwargs)
        except GraphBubbleUp:
            raise
        except Exception as raised:  # noqa: BLE001 - foreign code, as above
            return around.tool_failed(call, raised)

    return run_one


def _graph_ainvoke(original: Callable[..., Any]) -> Callable[..., Any]:
    async def ainvoke(self: Any, input: Any, config: Any = None, **options: Any) -> Any:
        result = await original(self, input, config, **options)
        around = _found(_callbacks(config)) if breakpoints.has(self) else None
        if around is not None and await breakpoints.astopped(self, config, result):
            around.waits_for_human(self.get_name())
        return result

    return ainvoke


def _graph_invoke(original: Callable[..., Any]) -> Callable[..., Any]:
    def invoke(self: Any, input: Any, config: Any = None, **options: Any) -> Any:
        result = original(self, input, config, **options)
        around = _found(_callbacks(config)) if breakpoints.has(self) else None
        if around is not None and breakpoints.stopped(self, config, result):
            around.waits_for_human(self.get_name())
        return result

    return invoke
