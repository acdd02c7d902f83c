"""What of a prompt or an answer may leave, and how much of it."""

import json
import re
from collections.abc import Sequence
from typing import Any

_LONGEST = 8_192
_SECRETS = re.compile(
    # Not in the middle of a word: task_recovered is no key.
    r"(?<![A-Za-z0-9])(?:sk|pk|wk|ghp|xox[abp])[-_][A-Za-z0-9_-]{8,}|(?i:bearer)\s+[\w.~+/=-]{8,}"
)


def scrubbed(text: str, limit: int = _LONGEST) -> str:
    """The text without what looks like a key, cut to `limit` characters."""
    text = _SECRETS.sub("[redacted]", text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def messages(said: Sequence[Any]) -> str:
    """Messages of LangChain, as the JSON that the conventions ask for."""
    told = [
        {"role": getattr(m, "type", "unknown"), "parts": [{"type": "text", "content": _text(m)}]}
        for m in said
    ]
    return scrubbed(json.dumps(told, ensure_ascii=False))


def value(said: Any) -> str:
    """Arguments or a result."""
    if isinstance(said, str):
        return scrubbed(said)
    return scrubbed(json.dumps(said, ensure_ascii=False, default=str))


def _text(message: Any) -> str:
    return str(getattr(message, "text", message))
