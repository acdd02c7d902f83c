"""Makes text and names of agents, models and tools safe for every reader.

A Python string may have no UTF-8 form, and `str()` of a foreign object may raise. Nothing here
raises: foreign text is made safe once, where it becomes a value of the core.
"""

from typing import Any

_MAX_NAME_LENGTH = 200


def sendable(text: str) -> str:
    """The text with lone surrogates replaced, since JSON on the wire is UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def cut(text: str, max_bytes: int) -> str:
    """At most `max_bytes` of the text: sendable, and cut between characters."""
    encoded = text[: max_bytes + 1].encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return encoded.decode("utf-8")
    return encoded[: max_bytes - 3].decode("utf-8", "ignore") + "…"


def text(value: object) -> str:
    """`str()` of a value, or the name of its type if that raises."""
    try:
        return sendable(value if isinstance(value, str) else str(value))
    except BaseException:  # noqa: BLE001 - foreign code; nothing is awaited that could be cancelled
        return type_name(value)


def type_name(value: object) -> str:
    """The name of the type, for a value without a text of its own."""
    return f"<{name(type(value).__name__)}>"


def name(value: Any) -> str:
    """A name for labels, spans and log lines: one line, printable, of bounded length."""
    if type(value) is str and len(value) <= _MAX_NAME_LENGTH and value.isprintable():
        return value
    full = text(value)
    short = full if len(full) <= _MAX_NAME_LENGTH else full[: _MAX_NAME_LENGTH - 1] + "…"
    return "".join(c if c.isprintable() else "?" for c in short)
