"""Every tool call of a message has an id of its own, in its content too."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage

from app.agents.handler import call_ids


def asks(*ids: str | None, blocks: list[Any] | None = None) -> AIMessage:
    """A message with a call for each id."""
    calls: list[Any] = [{"name": "pay", "args": {}, "id": own, "type": "tool_call"} for own in ids]
    return AIMessage(blocks or "", tool_calls=calls)


@pytest.mark.parametrize(
    ("sent", "ids"),
    [
        (("a", "b"), ["a", "b"]),
        (("a", "a", "a"), ["a", "a-2", "a-3"]),
        (("a", "a", "a-2"), ["a", "a-3", "a-2"]),
        (("a", "b", "a", "b"), ["a", "b", "a-2", "b-2"]),
    ],
)
def test_repeated_ids_are_numbered(sent: tuple[str, ...], ids: list[str]) -> None:
    """An id that a model sends twice is numbered, in the same way each time."""
    message = asks(*sent)
    for _ in range(2):
        call_ids.complete(message)
        assert [call["id"] for call in message.tool_calls] == ids


@pytest.mark.parametrize(("kind", "name"), [("tool_use", "id"), ("function_call", "call_id")])
def test_content_has_the_same_ids(kind: str, name: str) -> None:
    """A provider that reads the calls of the content finds the same ids there."""
    blocks = [{"type": "text", "text": "so"}, *({"type": kind, name: "a"} for _ in range(2))]
    message = asks("a", "a", blocks=blocks)
    call_ids.complete(message)
    found = [b[name] for b in message.content if isinstance(b, dict) and b["type"] == kind]
    assert found == [call["id"] for call in message.tool_calls] == ["a", "a-2"]


def test_missing_ids_differ() -> None:
    """Calls without an id get one each."""
    message = asks(None, None)
    call_ids.complete(message)
    assert len({call["id"] for call in message.tool_calls if call["id"]}) == 2
