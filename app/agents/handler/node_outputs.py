"""Reads the input and output of a node: a state, an update, commands, messages."""

from collections.abc import Iterable
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.errors import ParentCommand
from langgraph.types import Command

# The deepest nesting of messages: a list of commands, its update, a key, its list.
_DEEPEST = 4
_LISTS = (list, tuple)
_CONTAINERS = (Command, list, tuple)
_PLAIN = {str, bytes, int, float, bool, type(None)}


def output_of(raised: BaseException) -> Any:
    """Return the command of a node that handed over to an agent in the parent graph."""
    return raised.args[0] if isinstance(raised, ParentCommand) and raised.args else None


def messages_in(value: Any) -> list[BaseMessage]:
    """Return the messages in a node's input or output: a state, update, command or list."""
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


def has_output(value: Any, deep: int = 0) -> bool:
    """Whether a node's output holds the structured output of its agent."""
    if isinstance(value, dict):
        return value.get("structured_response") is not None
    if isinstance(value, _CONTAINERS) and deep < _DEEPEST:
        return any(has_output(inner, deep + 1) for inner in _parts(value))
    return False
