"""Reads what a node of a graph was given and gave: a state, an update, commands, messages."""

from collections.abc import Iterable
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.errors import ParentCommand
from langgraph.types import Command

# Messages stand no deeper than this: a list of commands, its update, a key, its list.
_DEEPEST = 4
_LISTS = (list, tuple)
_GIVERS = (Command, list, tuple)
_PLAIN = {str, bytes, int, float, bool, type(None)}


def output_of(raised: BaseException) -> Any:
    """What a node gave that ended by handing over to another agent of the graph around it."""
    return raised.args[0] if isinstance(raised, ParentCommand) and raised.args else None


def messages_in(value: Any) -> list[BaseMessage]:
    """The messages in what a node is given or gives: a state, an update, a command, a list."""
    found: list[BaseMessage] = []
    level: list[Any] = [value]
    for _ in range(_DEEPEST + 1):
        inner: list[Any] = []
        for part in level:
            kind = type(part)
            if kind is dict:
                inner.extend(part.values())
            elif kind is list or kind is tuple:
                inner.extend(part)
            elif kind in _PLAIN:
                continue
            elif isinstance(part, BaseMessage):
                found.append(part)
            else:
                inner.extend(_parts(part))
        if not inner:
            break
        level = inner
    return found


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Command):
        return (value.update,)
    if isinstance(value, _LISTS):
        return value
    if isinstance(value, dict):
        return value.values()
    fields = getattr(type(value), "model_fields", None) or getattr(
        type(value), "__dataclass_fields__", None
    )
    return [getattr(value, name, None) for name in fields] if fields else ()


def gives_output(value: Any, deep: int = 0) -> bool:
    """Whether a node gives the structured output of its agent."""
    if isinstance(value, dict):
        return value.get("structured_response") is not None
    if isinstance(value, _GIVERS) and deep < _DEEPEST:
        return any(gives_output(inner, deep + 1) for inner in _parts(value))
    return False
