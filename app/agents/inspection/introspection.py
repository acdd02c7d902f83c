"""Finds the parts of a ready-made agent: its chat model, its tool nodes, its output tools.

A ready-made agent has no API for these. The search walks its runnables and the closures of its
nodes, breadth first and with a bound.
"""

import inspect
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langgraph.pregel import Pregel
from langgraph.pregel._read import PregelNode
from pydantic import BaseModel

T = TypeVar("T")

_MOST_PARTS = 5_000
_PLAIN = (str, bytes, int, float, bool, type(None), type)
# Attributes of runnables, graph nodes and classic agents that hold their parts.
_PART_ATTRIBUTES = (
    "bound", "steps", "runnable", "first", "middle", "last", "func", "afunc",
    "agent", "llm", "llm_chain", "default", "branches", "fallbacks",
)  # fmt: skip


def find(agent: Any, wanted: type[T]) -> T | None:
    """Return the part of that type nearest to the agent, or None."""
    return next(find_all(agent, wanted), None)


def find_all(agent: Any, wanted: type[T]) -> Iterator[T]:
    """Yield every reachable part of that type."""
    return (part for part in parts(agent) if isinstance(part, wanted))


def output_tools(agent: Any) -> frozenset[str]:
    """Return the names of tools that `create_agent` uses for structured output."""
    names: set[str] = set()
    for part in parts(agent):
        if inspect.isfunction(part):
            referenced = inspect.getclosurevars(part).nonlocals.get("structured_output_tools")
            names.update(referenced or ())
    return frozenset(names)


def wants_output(agent: Any) -> bool:
    """Whether `create_agent` was given a `response_format`."""
    return any(
        inspect.getclosurevars(part).nonlocals.get("initial_response_format") is not None
        for part in parts(agent)
        if inspect.isfunction(part)
    )


def parts(agent: Any) -> Iterator[Any]:
    """Yield all parts of an agent, nearest first."""
    queue, seen = deque([agent]), {id(agent)}
    while queue and len(seen) < _MOST_PARTS:
        part = queue.popleft()
        yield part
        for inner in _parts_of(part):
            if id(inner) not in seen and not isinstance(inner, _PLAIN):
                seen.add(id(inner))
                queue.append(inner)


def _parts_of(part: Any) -> Iterable[Any]:
    if isinstance(part, BaseTool):
        return ()  # parts of a tool are not parts of the agent
    if isinstance(part, Pregel):
        return part.nodes.values()
    if isinstance(part, dict):
        return part.values()
    if isinstance(part, list | tuple):
        return part
    if isinstance(part, partial):
        return (part.func, *part.args, *part.keywords.values())
    if inspect.ismethod(part):
        return (part.__func__, part.__self__)
    if inspect.isfunction(part):
        return _referenced_by(part)
    if isinstance(part, Runnable | PregelNode | BaseModel):
        return [
            value for name in _PART_ATTRIBUTES if (value := getattr(part, name, None)) is not None
        ]
    return ()


def _referenced_by(function: Any) -> list[Any]:
    """Return what a function closes over, and the module-level runnables that it names."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # an empty cell
            continue
    referenced = (function.__globals__.get(name) for name in function.__code__.co_names)
    return found + [value for value in referenced if isinstance(value, Runnable)]
