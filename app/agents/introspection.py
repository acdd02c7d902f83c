"""Finds the parts of a ready-made agent: its chat model, its tool nodes, its output tools.

An agent that somebody else built offers no way to ask for these, so its runnables and the
closures of its nodes are walked, breadth first and with a bound.
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
# Attributes by which runnables, graph nodes and classic agents hold their parts.
_HOLDS = (
    "bound", "steps", "runnable", "first", "middle", "last", "func", "afunc",
    "agent", "llm", "llm_chain", "default", "branches", "fallbacks",
)  # fmt: skip


def find(agent: Any, wanted: type[T]) -> T | None:
    """The first part of that type, nearest to the agent itself; None where there is none."""
    return next(find_all(agent, wanted), None)


def find_all(agent: Any, wanted: type[T]) -> Iterator[T]:
    """Every part of that type that can be reached."""
    return (part for part in parts(agent) if isinstance(part, wanted))


def output_tools(agent: Any) -> frozenset[str]:
    """Names of the tools by which `create_agent` asks for structured output: not tools to run."""
    names: set[str] = set()
    for part in parts(agent):
        if inspect.isfunction(part):
            named = inspect.getclosurevars(part).nonlocals.get("structured_output_tools")
            names.update(named or ())
    return frozenset(names)


def wants_output(agent: Any) -> bool:
    """Whether `create_agent` was given a `response_format`."""
    return any(
        inspect.getclosurevars(part).nonlocals.get("initial_response_format") is not None
        for part in parts(agent)
        if inspect.isfunction(part)
    )


def parts(agent: Any) -> Iterator[Any]:
    """Everything that an agent is made of, nearest first."""
    waiting, seen = deque([agent]), {id(agent)}
    while waiting and len(seen) < _MOST_PARTS:
        part = waiting.popleft()
        yield part
        for inner in _inside(part):
            if id(inner) not in seen and not isinstance(inner, _PLAIN):
                seen.add(id(inner))
                waiting.append(inner)


def _inside(part: Any) -> Iterable[Any]:
    if isinstance(part, BaseTool):
        return ()  # what a tool uses is its own
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
        return _named_in(part)
    if isinstance(part, Runnable | PregelNode | BaseModel):
        return [value for name in _HOLDS if (value := getattr(part, name, None)) is not None]
    return ()


def _named_in(function: Any) -> list[Any]:
    """What a function closes over, and the runnables it names at the top of its module."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # a cell that is still empty
            continue
    named = (function.__globals__.get(name) for name in function.__code__.co_names)
    return found + [value for value in named if isinstance(value, Runnable)]
