"""Savers and hooks with which a graph cannot be run on a loop: a run would fail in them."""

import dis
import inspect
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain_core.runnables import Runnable
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel

_SAVING = ("aget_tuple", "aput", "aput_writes")
_MOST_PARTS = 5_000
# Whose functions call the graphs that they hold in the way in which they are called themselves.
LIBRARIES = ("langgraph", "langchain", "deepagents")


def saver(graph: Pregel[Any, Any, Any, Any]) -> str | None:
    """The type of the graph's own saver, if it has no async methods."""
    own = graph.checkpointer
    if not isinstance(own, BaseCheckpointSaver):
        return None
    written = [getattr(type(own), method) for method in _SAVING]
    return type(own).__name__ if any(map(_only_refuses, written)) else None


def is_closed(graph: Pregel[Any, Any, Any, Any]) -> bool:
    """Whether the connection of the graph's own saver was opened and is closed again."""
    connection = getattr(graph.checkpointer, "conn", None)
    if getattr(connection, "_running", True) is False:  # one of aiosqlite's
        return True
    opened = getattr(connection, "_opened", True)  # a pool begins closed
    return bool(opened) and getattr(connection, "closed", False) is True


def _only_refuses(method: Any) -> bool:
    """Whether all that a method does is to raise NotImplementedError."""
    code = getattr(inspect.unwrap(method), "__code__", None)
    if code is None or "NotImplementedError" not in code.co_names:
        return False
    does = {step.opname for step in dis.get_instructions(code)}
    return "RAISE_VARARGS" in does and not does & {"RETURN_VALUE", "RETURN_CONST", "GET_AWAITABLE"}


def hooks(graph: Pregel[Any, Any, Any, Any]) -> list[tuple[str, str]]:
    """Middlewares whose hook round a model or tool call has no async form, and that hook."""
    parts = list(asked_async(graph))
    tools = [n for n in parts if isinstance(n, ToolNode) and n.tools_by_name]
    found = _lacking("wrap_model_call", parts)
    found += _lacking("wrap_tool_call", _reached([node._awrap_tool_call for node in tools]))
    return list(dict.fromkeys(found))


def _lacking(hook: str, parts: Iterable[Any]) -> list[tuple[str, str]]:
    """Those of a hook's async forms that only say that there is none."""
    none = getattr(AgentMiddleware, f"a{hook}")
    return [
        (owner.name, hook)
        for part in parts
        if inspect.ismethod(part) and part.__func__ is none
        if isinstance(owner := part.__self__, AgentMiddleware)
    ]


def asked_async(graph: Pregel[Any, Any, Any, Any]) -> Iterator[Any]:
    """What a graph is made of, but for what only its sync nodes call, which work on threads."""
    return _reached([graph])


def _reached(parts: Iterable[Any]) -> Iterator[Any]:
    waiting = deque(parts)
    seen: set[int] = set()
    while waiting and len(seen) < _MOST_PARTS:
        part = waiting.popleft()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        waiting.extend(_inside(part))


def _inside(part: Any) -> Iterable[Any]:
    if isinstance(part, Pregel):
        return (node.bound for node in part.nodes.values())
    if isinstance(part, ToolNode):
        return ()
    if isinstance(part, list | tuple):
        return part
    if inspect.ismethod(part):
        return (part.__func__,)
    if inspect.isfunction(part):
        return _closed_over(part)
    if isinstance(part, Runnable):
        # The sync form of what has both is for `invoke`.
        held = ("afunc", "bound", "steps", "runnable", "first", "middle", "last")
        return [getattr(part, name, None) for name in held]
    return ()


def _closed_over(function: Any) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a cell that is still empty
            inner = cell.cell_contents
            if not isinstance(inner, Pregel) or function.__module__.startswith(LIBRARIES):
                yield inner
