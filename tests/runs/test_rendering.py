"""Any value of an agent becomes plain JSON, bounded, or fails at once."""

import json
import uuid
from collections import UserDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr, field_serializer

from app.runs import rendering
from app.runs.model import AgentAnswer
from app.runs.rendering import TooMuch
from tests.runs.test_plain import Raises, Recurses


class Colour(Enum):
    RED = "red"
    MIXED = (1, 2)


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    YES = "yes"


@dataclass
class Point:
    x: int
    key: SecretStr


class Order(BaseModel):
    when: datetime
    key: SecretStr
    hidden: int = Field(1, exclude=True)


class Refuses(BaseModel):
    x: int = 1

    @field_serializer("x")
    def raises(self, x: int) -> int:
        raise ZeroDivisionError("secret")


class Scalar:
    """Stands for a number of a library for arrays: it gives itself as a list."""

    size = 1

    def tolist(self) -> float:
        return 2.5


class Silent:
    """Says nothing of itself."""


class WithText:
    def __str__(self) -> str:
        return "said"


def holding_itself() -> dict[str, Any]:
    value: dict[str, Any] = {"a": 1}
    value["me"] = [value]
    return value


def nested(levels: int) -> Any:
    value: Any = "core"
    for _ in range(levels):
        value = [value]
    return value


def endless() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
FORMS: list[tuple[Any, Any]] = [
    (None, None), (True, True), (7, 7), (-(10**30), -(10**30)), (1.5, 1.5), ("a", "a"),
    (float("nan"), "nan"), (float("-inf"), "-inf"), ("a\udcaf", "a?"), ("nul\0", "nul\0"),
    (10**5_000, "1" + "0" * 5_000), (-(10**5_000), "-1" + "0" * 5_000),
    (1 << 1_000_000, "<an integer of 1000001 bits>"),
    (b"text", "text"), (b"\x89PNG\xff", "iVBOR/8="),
    (bytearray(b"a"), "a"), (memoryview(b"a"), "a"),
    (NOON, "2026-03-01T12:00:00Z"), (date(2026, 3, 1), "2026-03-01"), (NOON.time(), "12:00:00"),
    (timedelta(hours=1, milliseconds=5), "PT3600.005S"),
    (Decimal("1.10"), "1.10"), (Fraction(1, 3), "1/3"), (1 + 2j, "(1+2j)"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"), (Path("/a/b"), "/a/b"),
    (Colour.RED, "red"), (Colour.MIXED, [1, 2]), (Level.LOW, 1), (Word.YES, "yes"),
    ((1, (2,)), [1, [2]]), ({1}, [1]), (frozenset({1}), [1]),
    (deque([1]), [1]), (range(3), [0, 1, 2]),
    ({"a": 1}.values(), [1]), (UserDict({"a": {2}}), {"a": [2]}),
    ({1: "int", "1": "text", Level.LOW.name: 0, None: 1, (1, 2): 3, NOON: 4, False: 5},
     {"1": "int", "1 (2)": "text", "LOW": 0, "null": 1, "[1, 2]": 3, "2026-03-01T12:00:00Z": 4,
      "false": 5}),
    (Point(1, SecretStr("hunter2")), {"x": 1, "key": "**********"}),
    (Order(when=NOON, key=SecretStr("hunter2")),
     {"when": "2026-03-01T12:00:00Z", "key": "**********"}),
    ([Order], ["<ModelMetaclass>"]), (Scalar(), 2.5), (Silent(), "<Silent>"), (WithText(), "said"),
    (ValueError("secret"), "<ValueError>"), (print, "<builtin_function_or_method>"),
    (endless(), "<generator>"), (iter([1]), "<list_iterator>"),
    (holding_itself(), {"a": 1, "me": ["…"]}),
]  # fmt: skip


@pytest.mark.parametrize(("value", "form"), FORMS, ids=[str(n) for n in range(len(FORMS))])
def test_every_value_has_a_json_form(value: Any, form: Any) -> None:
    """JSON's own values stay, others become their parts, and the rest is text."""
    assert AgentAnswer("", output=value).output == form
    shown = rendering.preview(value, 100_000)
    assert shown == form or isinstance(value, Iterator)
    assert json.loads(json.dumps(form)) == form


NEVER: list[Any] = [
    Refuses(), Raises(ValueError("secret")), Raises(SystemExit(3)), Recurses(), "x" * 50_000_000,
    [b"\xff" * 9_000_000] * 2, [0] * 1_000_000, range(10**12), nested(100_000),
    {"deep": [nested(150)]},
]  # fmt: skip


@pytest.mark.parametrize("value", NEVER, ids=[str(n) for n in range(len(NEVER))])
def test_invalid_output_is_no_answer(value: Any) -> None:
    """An output that raises, is too large or too deep is no answer."""
    with pytest.raises(BaseException) as raised:  # noqa: PT011 - what foreign code raised
        AgentAnswer("", output=value)
    kinds = (TooMuch, RecursionError, SystemExit, ValueError)
    assert isinstance(raised.value, kinds) or "Serialization" in type(raised.value).__name__


def test_text_and_output_are_bounded_together() -> None:
    """Text and output together are bounded."""
    half = "x" * (rendering.MAX_BYTES // 2 + 1)
    assert AgentAnswer(half).text == AgentAnswer("", output=half).output == half
    for text, output in ((half, half), (half * 2, None)):
        with pytest.raises(TooMuch):
            AgentAnswer(text, output=output)


def test_large_output_is_whole() -> None:
    """An ordinary large output, and an ordinarily deep one, are whole."""
    rows = [{"n": n, "name": "order", "price": 1.5} for n in range(30_000)]
    for value in (rows, nested(90)):
        assert AgentAnswer("", output=value).output == value


@pytest.mark.parametrize("value", NEVER, ids=[str(n) for n in range(len(NEVER))])
def test_preview_shows_the_beginning(value: Any) -> None:
    """A preview shows the beginning of a value that is too large."""
    shown = rendering.preview({"first": 1, "value": value}, 4_096)
    text = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
    assert len(text.encode()) <= 4_096
    assert text.startswith('{"first": 1, "value": ')
    assert "secret" not in text


foreign = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary()
    | st.text(st.characters(codec=None)) | st.datetimes() | st.decimals() | st.uuids()
    | st.builds(Silent) | st.builds(lambda: Raises(ValueError())) | st.builds(lambda: 10**5_000),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers() | st.text(), inner)
    | st.tuples(inner, inner) | st.builds(lambda x: Point(x, SecretStr("x")), inner),
    max_leaves=12,
)  # fmt: skip


@given(foreign, st.integers(16, 400))
def test_any_value_is_rendered_within_bounds(value: Any, most_bytes: int) -> None:
    """Any value becomes bounded JSON in UTF-8, which renders to itself."""
    shown = rendering.preview(value, most_bytes)
    text = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
    assert len(text.encode()) <= most_bytes
    assert rendering.preview(shown, most_bytes) == shown
    try:
        output = AgentAnswer("", output=value).output
    except ValueError:
        return  # it raises itself
    assert json.loads(json.dumps(output, allow_nan=False)) == output
    assert AgentAnswer("", output=output).output == output
