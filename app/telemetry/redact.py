"""What of a prompt or an answer may leave, and how much of it."""

import json
import re
from collections.abc import Sequence
from typing import Any

from app.runs import plain, rendering

_LONGEST = 8_192
# So much more is looked at, since a key that is cut in two is not seen to be one.
_LONGEST_KEY = 1_000
_SECRETS = re.compile(
    # Not in the middle of a word: task_recovered is no key.
    r"(?<![A-Za-z0-9])(?:sk|pk|wk|ghp|xox[abp])[-_][A-Za-z0-9_-]{8,}|(?i:bearer)\s+[\w.~+/=-]{8,}"
)


def scrubbed(text: str, limit: int = _LONGEST) -> str:
    """The text without what looks like a key, sendable, cut to `limit` characters."""
    text = _SECRETS.sub("[redacted]", plain.sendable(text[: limit + _LONGEST_KEY]))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def messages(said: Sequence[Any]) -> str:
    """Messages of LangChain, as the JSON that the conventions ask for."""
    told = [
        {"role": plain.name(_role(m)), "parts": [{"type": "text", "content": _text(m)}]}
        for m in said
    ]
    return scrubbed(json.dumps(told, ensure_ascii=False))


def value(said: Any) -> str:
    """Arguments or a result."""
    shown = rendering.preview(said, _LONGEST + _LONGEST_KEY)
    return scrubbed(shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False))


def _role(message: Any) -> Any:
    return getattr(message, "type", "unknown")


def _text(message: Any) -> str:
    """The beginning of a message: what is beyond the end of all of them is not looked at."""
    return plain.cut(plain.text(getattr(message, "text", message)), _LONGEST + _LONGEST_KEY)
