"""Speaks the wire of OpenAI's chat completions; those of Azure and many others are the same."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_openai import ChatOpenAI

from tests.ecosystem.wire import Json, Turn, event, serving

_ABOUT = {"id": "c1", "created": 1, "model": "gpt-4.1-mini"}


class Completions:
    streams_as = "text/event-stream"

    def wants_stream(self, path: str, asked: Json) -> bool:
        return bool(asked.get("stream"))

    def whole(self, turn: Turn, number: int) -> Json:
        message: Json = {"role": "assistant", "content": turn.text or None}
        if turn.refusal:
            message["refusal"] = turn.refusal
        if turn.audio:
            message["audio"] = {
                "id": "a1",
                "data": turn.audio,
                "expires_at": 1,
                "transcript": "Hi.",
            }
        if turn.calls:
            message["tool_calls"] = _calls(turn, number)
        choice = {"index": 0, "message": message, "finish_reason": _reason(turn)}
        return {**_ABOUT, "object": "chat.completion", "choices": [choice], "usage": _usage(turn)}

    def pieces(self, turn: Turn, number: int) -> Iterator[bytes]:
        yield _chunk({"role": "assistant", "content": None if turn.refusal else ""})
        for word in turn.words:
            yield _chunk({"content": word})
        for word in turn.refusal.partition(" "):
            if word:
                yield _chunk({"refusal": word})
        for index, call in enumerate(_calls(turn, number)):
            arguments = call["function"]["arguments"]
            function = {**call["function"], "arguments": ""}
            yield _chunk({"tool_calls": [{**call, "index": index, "function": function}]})
            for part in (arguments[:4], arguments[4:-1] if turn.cut else arguments[4:]):
                more = {"index": index, "function": {"arguments": part}}
                yield _chunk({"tool_calls": [more]})
        if not turn.cut:
            yield _chunk({}, _reason(turn))
            about = {**_ABOUT, "object": "chat.completion.chunk", "choices": []}
            yield event({**about, "usage": _usage(turn)})
            yield b"data: [DONE]\n\n"

    def failure(self, turn: Turn) -> Json:
        sentence = turn.text or "secret-in-exception"
        return {"error": {"message": sentence, "type": "error", "code": turn.reason}}


@asynccontextmanager
async def model(*turns: Turn, **options: Any) -> AsyncIterator[ChatOpenAI]:
    """The real client, of a server that says these turns."""
    with serving(Completions(), turns) as wire:
        yield client(wire.url, **options)


def client(url: str, **options: Any) -> ChatOpenAI:
    """The real client of a server at this address."""
    given: Any = {"base_url": f"{url}/v1", "api_key": "not-a-secret", "max_retries": 0}
    return ChatOpenAI(model="gpt-4.1-mini", **given, **options)


def _reason(turn: Turn) -> str:
    return turn.reason or ("tool_calls" if turn.calls else "stop")


def _calls(turn: Turn, number: int) -> list[Json]:
    return [
        {
            "id": f"call-{number}-{index}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(given)},
        }
        for index, (name, given) in enumerate(turn.calls)
    ]


def _usage(turn: Turn) -> Json:
    read, written = turn.usage
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _chunk(delta: Json, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return event({**_ABOUT, "object": "chat.completion.chunk", "choices": [choice]})
