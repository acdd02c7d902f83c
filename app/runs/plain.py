"""Text and names that every reader can take, whatever an agent, a model or a tool made of them.

Python holds strings that UTF-8 has no form for, and objects whose own text raises. Nothing here
raises: what comes from foreign code is made safe once, where it becomes a value of the core.
"""

from typing import Any

_LONGEST_NAME = 200


def sendable(text: str) -> str:
    """The same text, its lone surrogates replaced, since JSON on the wire is UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def cut(text: str, most_bytes: int) -> str:
    """At most so many bytes of the text, sendable and never half a character."""
    encoded = text[: most_bytes + 1].encode("utf-8", "replace")
    if len(encoded) <= most_bytes:
        return encoded.decode("utf-8")
    return encoded[: most_bytes - 3].decode("utf-8", "ignore") + "…"


def text(value: object) -> str:
    """What a value says of itself; of one that cannot, the name of its type."""
    try:
        return sendable(value if isinstance(value, str) else str(value))
    except BaseException:  # noqa: BLE001 - foreign code; nothing is awaited that could be cancelled
        return type_name(value)


def type_name(value: object) -> str:
    """Stands for a value that says nothing of itself."""
    return f"<{name(type(value).__name__)}>"


def name(value: Any) -> str:
    """A name as labels, spans and lines can take it: one line, printable, not very long."""
    if type(value) is str and len(value) <= _LONGEST_NAME and value.isprintable():
        return value
    said = text(value)
    short = said if len(said) <= _LONGEST_NAME else said[: _LONGEST_NAME - 1] + "…"
    return "".join(c if c.isprintable() else "?" for c in short)
