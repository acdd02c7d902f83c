"""Converts values of agents to plain JSON values: bounded and without cycles.

It happens once, where the value enters the core. So no reader, log or store can fail on it later.
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

# Limits of an answer, its text included. JSON readers fail at a few hundred levels.
MAX_BYTES = 16_000_000
MAX_ITEMS = 250_000
MAX_DEPTH = 100
_PREVIEW_DEPTH = 20
_ITEM_BYTES = 2
# Python converts no larger integers to text or back.
_MAX_NUMBER_BITS = 14_000
_MAX_INTEGER_BITS = 300_000
_LISTS = (Sequence, Set, ValuesView, deque)
# Their `str()` is an address in memory, the message of an exception, or empty.
_TEXTLESS = (Awaitable, Iterator, BaseException)
_CUT = "…"


class TooMuch(ValueError):
    """The value exceeds a limit: too large, too many parts, or too deep."""


def whole(value: Any, beside_bytes: int = 0) -> Any:
    """The value as JSON; a value without a JSON form becomes text.

    Raises TooMuch beyond the limits, of which `beside_bytes` are already used. Passes on exceptions
    of foreign code: a reader would take half of an output for the whole.
    """
    return _Whole(MAX_BYTES - beside_bytes, MAX_ITEMS, MAX_DEPTH).of(value)


def preview(value: Any, max_bytes: int) -> Any:
    """The value as JSON, or the first part of its text if it is long. Never raises."""
    converter = _Preview(max_bytes, max_bytes // _ITEM_BYTES, _PREVIEW_DEPTH)
    shown = converter.of(value)
    text = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
    short = plain.cut(text, max_bytes)
    if short == text and not converter.is_full:
        return shown
    return short if short.endswith(_CUT) else plain.cut(text, max_bytes - 3) + _CUT


class _Whole:
    """Converts one value; counts down the remaining bytes, items and levels."""

    def __init__(self, max_bytes: int, max_items: int, max_depth: int) -> None:
        self._bytes = max_bytes
        self._items = max_items
        self._levels = max_depth
        self._open: set[int] = set()

    def of(self, value: Any) -> Any:
        """The value as JSON."""
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
            return _CUT  # it contains itself
        if self._levels <= 0:
            return self._too_deep()
        self._levels -= 1
        self._open.add(id(value))
        try:
            return self._of_other(value)
        finally:
            self._open.remove(id(value))
            self._levels += 1

    def _of_other(self, value: Any) -> Any:
        """A value that is neither a scalar of JSON nor being converted already."""
        kind = type(value)
        if kind is dict:
            return self._object(list(value.items()))  # a copy: its owner may still change it
        if kind in (list, tuple):
            return self._array(list(value))
        match value:
            case Enum():
                return self.of(value.value)
            case str():
                return self._text(str.__str__(value))
            case bytes() | bytearray() | memoryview():
                return self._text(_decoded(bytes(value)))
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
        return self._of_object(value)

    def _of_object(self, value: Any) -> Any:
        """An object of a foreign class: its fields, its items, or its text."""
        kind = type(value)
        if callable(dump := getattr(kind, "model_dump", None)):
            return self.of(dump(value))
        if is_dataclass(kind):
            return self._object((f.name, getattr(value, f.name)) for f in fields(kind))
        if isinstance(value, _LISTS):
            return self._array(value)
        if callable(getattr(kind, "tolist", None)) and self._is_small(value):
            return self.of(value.tolist())
        if isinstance(value, _TEXTLESS) or callable(value) or not _has_own_text(kind):
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
            shown_key = self.of(key)
            is_text = isinstance(shown_key, str)
            name = shown_key if is_text else json.dumps(shown_key, ensure_ascii=False)
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
        if bits <= _MAX_NUMBER_BITS:
            return self._counted(value, 1 + bits * 3 // 10)
        if bits <= _MAX_INTEGER_BITS:  # Decimal has the digits, `str` refuses
            return self._text(str(Decimal(value)))
        return self._text(f"<an integer of {bits} bits>")

    def _float(self, value: float) -> Any:
        return self._counted(value if isfinite(value) else str(value), 3)

    def _counted(self, shown: T, size: int) -> T:
        self._bytes -= size
        self._items -= 1
        if self.is_full:
            raise TooMuch("an answer is too large")
        return shown

    @property
    def is_full(self) -> bool:
        """Whether the value exceeded a limit."""
        return self._bytes < 0 or self._items < 0

    def _too_deep(self) -> Any:
        raise TooMuch("an answer is too deep")


class _Preview(_Whole):
    """Converts the first part of a value; leaves out parts beyond the limits."""

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


def _has_own_text(kind: Any) -> bool:
    """Whether a class defines `str()` or `repr()`."""
    return kind.__str__ is not object.__str__ or kind.__repr__ is not object.__repr__


def _decoded(data: bytes) -> str:
    """The text of the bytes if they are UTF-8, else base64."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return b64encode(data).decode("ascii")
