"""Cuts text of prompts and answers for spans and logs, and removes keys from it."""

import json
import re
from collections.abc import Sequence
from typing import Any

from app.runs import plain, rendering

_LONGEST = 8_192
# Text is searched this far beyond its limit: half a key does not look like a key.
_LONGEST_KEY = 1_000
_SECRETS = re.compile(
    # A key starts at the start of a word: task_recovered has none.
    r"(?<![A-Za-z0-9])(?:sk|pk|wk|ghp|xox[abp])[-_][A-Za-z0-9_-]{8,}|(?i:bearer)\s+[\w.~+/=-]{8,}"
)


def scrubbed(text: str, limit: int = _LONGEST) -> str:
    """Return the text without anything like a key, in valid UTF-8, cut to `limit` characters."""
    text = _SECRETS.sub("[redacted]", plain.sendable(text[: limit + _LONGEST_KEY]))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def messages(sequence: Sequence[Any]) -> str:
    """Return messages of LangChain as JSON in the form of the conventions."""
    rendered = [
        {"role": plain.name(_role(m)), "parts": [{"type": "text", "content": _text(m)}]}
        for m in sequence
    ]
    return scrubbed(json.dumps(rendered, ensure_ascii=False))


def value(raw: Any) -> str:
    """Return arguments or a result of a tool as text."""
    shown = rendering.preview(raw, _LONGEST + _LONGEST_KEY)
    return scrubbed(shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False))


def _role(message: Any) -> Any:
    return getattr(message, "type", "unknown")


def _text(message: Any) -> str:
    """Return the start of a message, up to the limit for all messages."""
    return plain.cut(plain.text(getattr(message, "text", message)), _LONGEST + _LONGEST_KEY)
