"""Speaks the wire of Anthropic's Messages API."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_anthropic import ChatAnthropic

from tests.ecosystem.wire import Json, Turn, event, serving


class Anthropic:
    streams_as = "text/event-stream"

    def wants_stream(self, path: str, asked: Json) -> bool:
        return bool(asked.get("stream"))

    def whole(self, turn: Turn, number: int) -> Json:
        return {**_message(turn, number), "content": _blocks(turn, number), **_end(turn)}

    def pieces(self, turn: Turn, number: int) -> Iterator[bytes]:
        started = {
            **_message(turn, number),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        yield _event("message_start", message=started)
        for index, block in enumerate(_blocks(turn, number)):
            yield _event("content_block_start", index=index, content_block=_emptied(block))
            for delta in _deltas(block, turn):
                yield _event("content_block_delta", index=index, delta=delta)
            yield _event("content_block_stop", index=index)
        if not turn.cut:
            usage = {"input_tokens": turn.usage[0], "output_tokens": turn.usage[1]}
            yield _event("message_delta", delta=_end(turn), usage=usage)
            yield _event("message_stop")

    def failure(self, turn: Turn) -> Json:
        sentence = turn.text or "secret-in-exception"
        return {"type": "error", "error": {"type": "invalid_request_error", "message": sentence}}


@asynccontextmanager
async def model(*turns: Turn, **options: Any) -> AsyncIterator[ChatAnthropic]:
    """The real client, of a server that says these turns."""
    with serving(Anthropic(), turns) as wire:
        yield ChatAnthropic(
            model_name="claude-opus-5",
            base_url=wire.url,
            api_key="not-a-secret",
            max_retries=0,
            **options,
        )


def _message(turn: Turn, number: int) -> Json:
    usage = {"input_tokens": turn.usage[0], "output_tokens": turn.usage[1]}
    about = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-5",
    }
    return {**about, "usage": usage}


def _end(turn: Turn) -> Json:
    reason = turn.reason or ("tool_use" if turn.calls else "end_turn")
    end: Json = {"stop_reason": reason, "stop_sequence": None}
    if turn.refusal:
        details = {"type": "refusal", "category": "cyber", "explanation": turn.refusal}
        end["stop_details"] = details
    return end


def _blocks(turn: Turn, number: int) -> list[Json]:
    blocks: list[Json] = []
    if turn.thinking:
        blocks.append({"type": "thinking", "thinking": turn.thinking, "signature": "c2ln"})
    if turn.text:
        blocks.append({"type": "text", "text": turn.text})
    for index, (name, given) in enumerate(turn.calls):
        call_id = f"call-{number}-{index}"
        blocks.append({"type": "tool_use", "id": call_id, "name": name, "input": given})
    return blocks


def _emptied(block: Json) -> Json:
    empty: Json = {"text": "", "thinking": "", "signature": "", "input": {}}
    return {key: empty.get(key, value) for key, value in block.items()}


def _deltas(block: Json, turn: Turn) -> Iterator[Json]:
    if block["type"] == "thinking":
        yield {"type": "thinking_delta", "thinking": block["thinking"]}
        yield {"type": "signature_delta", "signature": block["signature"]}
    elif block["type"] == "text":
        yield from ({"type": "text_delta", "text": word} for word in turn.words)
    else:
        given = json.dumps(block["input"])
        for part in (given[:4], given[4:-1] if turn.cut else given[4:]):
            yield {"type": "input_json_delta", "partial_json": part}


def _event(name: str, **data: Any) -> bytes:
    return event({"type": name, **data}, name)
