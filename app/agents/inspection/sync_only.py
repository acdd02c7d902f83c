"""Finds checkpointers and hooks without async methods: an async run would fail in them."""

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
# Functions of these packages call their nested graphs in the mode in which they are called.
LIBRARIES = ("langgraph", "langchain", "deepagents")


def saver(graph: Pregel[Any, Any, Any, Any]) -> str | None:
    """Return the type of the graph's checkpointer, if it has no async methods."""
    own = graph.checkpointer
    if not isinstance(own, BaseCheckpointSaver):
        return None
    written = [getattr(type(own), method) for method in _SAVING]
    return type(own).__name__ if any(map(_only_refuses, written)) else None


def is_closed(graph: Pregel[Any, Any, Any, Any]) -> bool:
    """Whether the connection of the graph's checkpointer was opened and closed again."""
    connection = getattr(graph.checkpointer, "conn", None)
    if getattr(connection, "_running", True) is False:  # aiosqlite
        return True
    opened = getattr(connection, "_opened", True)  # a new pool is closed
    return bool(opened) and getattr(connection, "closed", False) is True


def _only_refuses(method: Any) -> bool:
    """Whether a method only raises NotImplementedError."""
    code = getattr(inspect.unwrap(method), "__code__", None)
    if code is None or "NotImplementedError" not in code.co_names:
        return False
    operations = {step.opname for step in dis.get_instructions(code)}
    return "RAISE_VARARGS" in operations and not operations & {
        "RETURN_VALUE",
        "RETURN_CONST",
        "GET_AWAITABLE",
    }


def hooks(graph: Pregel[Any, Any, Any, Any]) -> list[tuple[str, str]]:
    """Return middlewares whose wrapper of model or tool calls has no async form, with its name."""
    parts = list(async_parts(graph))
    tools = [n for n in parts if isinstance(n, ToolNode) and n.tools_by_name]
    found = _without_async("wrap_model_call", parts)
    found += _without_async("wrap_tool_call", _reached([node._awrap_tool_call for node in tools]))
    return list(dict.fromkeys(found))


def _without_async(hook: str, parts: Iterable[Any]) -> list[tuple[str, str]]:
    """Return middlewares that inherit the failing default of a hook's async form."""
    fallback = getattr(AgentMiddleware, f"a{hook}")
    return [
        (owner.name, hook)
        for part in parts
        if inspect.ismethod(part) and part.__func__ is fallback
        if isinstance(owner := part.__self__, AgentMiddleware)
    ]


def async_parts(graph: Pregel[Any, Any, Any, Any]) -> Iterator[Any]:
    """Yield the parts of a graph that run on the loop; sync nodes run on threads."""
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
        waiting.extend(_parts_of(part))


def _parts_of(part: Any) -> Iterable[Any]:
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
        # If both forms exist, the sync one is for `invoke`.
        attributes = ("afunc", "bound", "steps", "runnable", "first", "middle", "last")
        return [getattr(part, name, None) for name in attributes]
    return ()


def _closed_over(function: Any) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty cell
            inner = cell.cell_contents
            if not isinstance(inner, Pregel) or function.__module__.startswith(LIBRARIES):
                yield inner
