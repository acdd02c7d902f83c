"""Turns what an agent made into plain JSON values: bounded, without cycles, once and for all.

It happens where the value becomes one of the core. From there on its readers, the log and the
store take it as it is, and none of them can fail on it.
"""

import json
from base64 import b64encode
from collections import Counter, deque
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from math import isfinite
from numbers import Integral, Number, Rational, Real
from pathlib import PurePath
from re import Pattern
from typing import Any, TypeVar

from app.runs import plain

T = TypeVar("T")

# What a run may answer with, its text included. JSON readers give up at a few hundred levels.
MOST_BYTES = 16_000_000
MOST_ITEMS = 250_000
MOST_DEPTH = 100
_PREVIEW_DEPTH = 20
_ITEM_BYTES = 2
# Python writes no more digits of an integer as text, and reads none either.
_LONGEST_NUMBER_BITS = 14_000
_LONGEST_INTEGER_BITS = 300_000
_LISTS = (Sequence, Set, ValuesView, deque)
# Their own texts are addresses in memory, messages of exceptions, or nothing.
_SAY_NOTHING = (Awaitable, Iterator, BaseException)
_CUT = "…"


class TooMuch(ValueError):
    """More than is passed on: too large, too many parts, or too deep."""


def whole(value: Any, beside_bytes: int = 0) -> Any:
    """The value as JSON has it; what JSON has no form for becomes text.

    Raises TooMuch for more than there may be, beside that many bytes. Raises what foreign code
    raises: half of an output would be taken for the whole.
    """
    return _Whole(MOST_BYTES - beside_bytes, MOST_ITEMS, MOST_DEPTH).of(value)


def preview(value: Any, most_bytes: int) -> Any:
    """The value as JSON has it, or the beginning of its text where it is long. Never raises."""
    looked = _Preview(most_bytes, most_bytes // _ITEM_BYTES, _PREVIEW_DEPTH)
    shown = looked.of(value)
    said = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
    short = plain.cut(said, most_bytes)
    if short == said and not looked.is_full:
        return shown
    return short if short.endswith(_CUT) else plain.cut(said, most_bytes - 3) + _CUT


class _Whole:
    """One value on its way; how much there still may be is counted down."""

    def __init__(self, most_bytes: int, most_items: int, most_depth: int) -> None:
        self._bytes = most_bytes
        self._items = most_items
        self._levels = most_depth
        self._open: set[int] = set()

    def of(self, value: Any) -> Any:
        """The value as JSON has it."""
        kind = type(value)
        if kind is str:
            return self._text(value)
        if value is None or kind is bool:
            return self._counted(value, _ITEM_BYTES)
        if kind is int:
            return self._integer(value)
        if kind is float:
            return self._float(value)
        if id(value) in self._open:
            return _CUT  # it holds itself
        if self._levels <= 0:
            return self._too_deep()
        self._levels -= 1
        self._open.add(id(value))
        try:
            return self._inside(value)
        finally:
            self._open.remove(id(value))
            self._levels += 1

    def _inside(self, value: Any) -> Any:
        """What is neither of JSON's own scalars nor open already."""
        kind = type(value)
        if kind is dict:
            return self._object(list(value.items()))  # a copy: its owner may still be at work
        if kind in (list, tuple):
            return self._array(list(value))
        match value:
            case Enum():
                return self.of(value.value)
            case str():
                return self._text(str.__str__(value))
            case bytes() | bytearray() | memoryview():
                return self._text(_said_in(bytes(value)))
            case Mapping():
                return self._object(value.items())
            case timedelta():
                return self._text(f"PT{Decimal(str(value.total_seconds())).normalize():f}S")
            case date() | time():
                return self._text(value.isoformat().replace("+00:00", "Z"))
            case PurePath():
                return self._text(str(value))
            case Pattern():
                return self.of(value.pattern)
            case Integral():
                return self._integer(int(value))
            case Real() if not isinstance(value, Rational):
                return self._float(float(value))
            case Number():
                return self._text(str(value))
        return self._made_of(value)

    def _made_of(self, value: Any) -> Any:
        """An object of some class, which may say itself what it is made of."""
        kind = type(value)
        if callable(dump := getattr(kind, "model_dump", None)):
            return self.of(dump(value))
        if is_dataclass(kind):
            return self._object((f.name, getattr(value, f.name)) for f in fields(kind))
        if isinstance(value, _LISTS):
            return self._array(value)
        if callable(getattr(kind, "tolist", None)) and self._is_small(value):
            return self.of(value.tolist())
        if isinstance(value, _SAY_NOTHING) or callable(value) or not _says_something(kind):
            return self._text(plain.type_name(value))
        return self._text(str(value))

    def _is_small(self, value: Any) -> bool:
        size = getattr(value, "size", None)
        return isinstance(size, int) and size <= self._items

    def _object(self, items: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        alike: Counter[str] = Counter()
        for key, inner in items:
            if self.is_full:
                break
            said = self.of(key)
            name = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
            while name in shown:  # keys that differ in Python can be one in JSON
                alike[name] += 1
                name = f"{name} ({alike[name] + 1})"
            shown[name] = self.of(inner)
        return self._counted(shown, _ITEM_BYTES)

    def _array(self, items: Iterable[Any]) -> list[Any]:
        shown = []
        for inner in items:
            if self.is_full:
                break
            shown.append(self.of(inner))
        return self._counted(shown, _ITEM_BYTES)

    def _text(self, text: str) -> str:
        if not text.isascii():
            encoded = text.encode("utf-8", "replace")
            return self._counted(encoded.decode("utf-8"), len(encoded))
        return self._counted(text, len(text))

    def _integer(self, value: int) -> Any:
        bits = value.bit_length()
        if bits <= _LONGEST_NUMBER_BITS:
            return self._counted(value, 1 + bits * 3 // 10)
        if bits <= _LONGEST_INTEGER_BITS:  # which has digits for it where `str` refuses
            return self._text(str(Decimal(value)))
        return self._text(f"<an integer of {bits} bits>")

    def _float(self, value: float) -> Any:
        return self._counted(value if isfinite(value) else str(value), 3)

    def _counted(self, shown: T, size: int) -> T:
        self._bytes -= size
        self._items -= 1
        if self.is_full:
            raise TooMuch("an answer is larger than what is passed on")
        return shown

    @property
    def is_full(self) -> bool:
        """Whether there was more than there may be."""
        return self._bytes < 0 or self._items < 0

    def _too_deep(self) -> Any:
        raise TooMuch("an answer is deeper than what is passed on")


class _Preview(_Whole):
    """The beginning of a value, for a look at it: what cannot be shown is left out."""

    def of(self, value: Any) -> Any:
        try:
            return super().of(value)
        except BaseException:  # noqa: BLE001 - foreign code; nothing is awaited here
            return self._text(plain.type_name(value))

    def _text(self, text: str) -> str:
        return super()._text(text[: max(0, self._bytes) + 1])

    def _counted(self, shown: T, size: int) -> T:
        self._bytes -= size
        self._items -= 1
        return shown

    def _too_deep(self) -> Any:
        return _CUT


def _says_something(kind: Any) -> bool:
    """Whether a class has a text of its own."""
    return kind.__str__ is not object.__str__ or kind.__repr__ is not object.__repr__


def _said_in(data: bytes) -> str:
    """Bytes are their text if they are one, else base64."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return b64encode(data).decode("ascii")
