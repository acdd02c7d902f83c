"""Speaks the wire of Ollama's chat API."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_ollama import ChatOllama

from tests.ecosystem.wire import Json, Turn, serving

_ABOUT = {"model": "llama3.2", "created_at": "2026-01-01T00:00:00Z"}


class Ollama:
    streams_as = "application/x-ndjson"

    def wants_stream(self, path: str, asked: Json) -> bool:
        return bool(asked.get("stream", True))

    def whole(self, turn: Turn, number: int) -> Json:
        message = {"role": "assistant", "content": turn.text, "tool_calls": _calls(turn)}
        return {**_ABOUT, "message": message, **_end(turn)}

    def pieces(self, turn: Turn, number: int) -> Iterator[bytes]:
        if turn.thinking:
            yield _line(thinking=turn.thinking)
        for word in turn.words:
            yield _line(content=word)
        if turn.calls:
            yield _line(tool_calls=_calls(turn))
        if not turn.cut:
            yield _line(_end(turn))

    def failure(self, turn: Turn) -> Json:
        return {"error": turn.text or "secret-in-exception"}


@asynccontextmanager
async def model(*turns: Turn, **options: Any) -> AsyncIterator[ChatOllama]:
    """The real client, of a server that says these turns."""
    with serving(Ollama(), turns) as wire:
        yield ChatOllama(model="llama3.2", base_url=wire.url, **options)


def _calls(turn: Turn) -> list[Json]:
    return [{"function": {"name": name, "arguments": given}} for name, given in turn.calls]


def _end(turn: Turn) -> Json:
    """Servers before 0.1.30 gave no reason, which a turn's empty reason stands for."""
    end: Json = {"done": True, "prompt_eval_count": turn.usage[0], "eval_count": turn.usage[1]}
    if turn.reason != "":
        end["done_reason"] = turn.reason or "stop"
    return end


def _line(end: Json | None = None, content: str = "", **fields: Any) -> bytes:
    message = {"role": "assistant", "content": content, **fields}
    return json.dumps({**_ABOUT, "message": message, "done": False, **(end or {})}).encode() + b"\n"
