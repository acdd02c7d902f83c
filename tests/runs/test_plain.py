"""Texts and names are safe for every reader, whatever they contain."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.runs import plain
from app.runs.events import Token, ToolCallFinished, ToolCallStarted
from app.runs.model import CallOutcome

# Text with what Python keeps in strings, and UTF-8 does not: halves of surrogate pairs.
anything = st.text(st.characters(codec=None))


class Raises:
    """An object that cannot say what it is."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __str__(self) -> str:
        raise self.error


class Recurses:
    """An object that asks itself what it is."""

    def __str__(self) -> str:
        return str(self)


@given(anything)
def test_sendable_text_is_utf_8(text: str) -> None:
    """Sent text is UTF-8 of the same length; valid UTF-8 is unchanged."""
    sent = plain.sendable(text)
    assert len(sent.encode().decode()) == len(text)
    assert all(here == there for here, there in zip(sent, text, strict=True) if here != "?")


@given(anything, st.integers(8, 200))
def test_cut_keeps_whole_characters(text: str, limit: int) -> None:
    """A cut text fits and is a beginning of the whole."""
    short, whole = plain.cut(text, limit), plain.sendable(text)
    assert len(short.encode()) <= limit
    assert whole.startswith(short if short == whole else short.removesuffix("…"))
    assert short == whole or len(whole.encode()) > limit


@given(anything)
def test_names_are_one_printable_line(text: str) -> None:
    """A name has no control characters, no halves of characters, and an end."""
    name = plain.name(text)
    assert len(name) <= 200
    assert name.isprintable()
    assert plain.name(name) == name


def test_usual_name_is_unchanged() -> None:
    """Usual names of tools and models stay unchanged."""
    for name in ("get_order", "gpt-4.1-mini", "模型", "models/gemini 2.5"):
        assert plain.name(name) == name
    assert plain.name("a\nb\0c\udcaf") == "a?b?c?"
    assert plain.name("x" * 100_000) == "x" * 199 + "…"


@pytest.mark.parametrize(
    "value",
    [Raises(ValueError("secret")), Raises(SystemExit(3)), Raises(KeyboardInterrupt()), Recurses(),
     10**10_000],
    ids=["raises", "exits", "interrupts", "recurses", "huge"],
)  # fmt: skip
def test_object_without_a_text_has_its_type_name(value: object) -> None:
    """An object without a text is represented by the name of its type."""
    assert plain.text(value) == f"<{type(value).__name__}>"
    assert plain.name(value) == f"<{type(value).__name__}>"


def test_facts_have_safe_names() -> None:
    """Names become safe where a fact is made, for all its readers."""
    about: dict[str, Any] = {"run_id": "r", "agent": "a", "at": 1.0, "call_id": "c"}
    fields: dict[str, Any] = {"parent_id": None, "tool": "a\nb", "iteration": 1, "arguments": None}
    started = ToolCallStarted(**about, **fields, tool_call_id="i\udcaf" * 1_000)
    assert (started.tool, len(started.tool_call_id or "")) == ("a?b", 200)
    ended = ToolCallFinished(**about, tool="\udcaf", started_at=0.0, outcome=CallOutcome.COMPLETED)
    assert ended.tool == "?"
    token = Token("half \ud83d", 1, "sub\0agent")
    assert (token.text, token.sub_agent) == ("half ?", "sub?agent")
