"""Speaks the wire of OpenAI's Responses API."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_openai import ChatOpenAI

from tests.ecosystem import openai_wire
from tests.ecosystem.wire import Json, Turn, event, serving


class Responses:
    streams_as = "text/event-stream"

    def wants_stream(self, path: str, asked: Json) -> bool:
        return bool(asked.get("stream"))

    def whole(self, turn: Turn, number: int) -> Json:
        cut = turn.reason is not None
        return {
            "id": f"resp_{number}", "object": "response", "created_at": 1, "model": "gpt-4.1-mini",
            "status": "incomplete" if cut else "completed", "error": None,
            "incomplete_details": {"reason": turn.reason} if cut else None,
            "output": _items(turn, number), "usage": _usage(turn), "metadata": {},
            "instructions": None,
            "parallel_tool_calls": True, "temperature": 1.0, "tool_choice": "auto", "tools": [],
            "top_p": 1.0,
        }  # fmt: skip

    def pieces(self, turn: Turn, number: int) -> Iterator[bytes]:
        whole = self.whole(turn, number)
        begun = {**whole, "status": "in_progress", "incomplete_details": None, "output": []}
        events = [_event("created", response=begun)]
        for index, item in enumerate(_items(turn, number)):
            events += _item_events(index, item, turn)
        if not turn.cut:
            events.append(_event(whole["status"], response=whole))
        for place, data in enumerate(events):
            yield event({**data, "sequence_number": place}, data["type"])

    def failure(self, turn: Turn) -> Json:
        sentence = turn.text or "secret-in-exception"
        return {"error": {"message": sentence, "type": "error", "code": turn.reason}}


@asynccontextmanager
async def model(*turns: Turn, **options: Any) -> AsyncIterator[ChatOpenAI]:
    """The real client, of a server that says these turns."""
    with serving(Responses(), turns) as wire:
        yield openai_wire.client(wire.url, use_responses_api=True, **options)


def _items(turn: Turn, number: int) -> list[Json]:
    items: list[Json] = []
    if turn.thinking:
        summary = [{"type": "summary_text", "text": turn.thinking}]
        items.append({"type": "reasoning", "id": f"rs_{number}", "summary": summary})
    content: list[Json] = []
    if turn.text:
        content.append({"type": "output_text", "text": turn.text, "annotations": []})
    if turn.refusal:
        content.append({"type": "refusal", "refusal": turn.refusal})
    if content:
        about = {
            "type": "message",
            "id": f"msg_{number}",
            "role": "assistant",
            "status": "completed",
        }
        items.append({**about, "content": content})
    if turn.image:
        about = {"type": "image_generation_call", "id": f"ig_{number}", "status": "completed"}
        items.append({**about, "result": turn.image, "output_format": "png"})
    for index, (name, given) in enumerate(turn.calls):
        ids = {"id": f"fc_{number}_{index}", "call_id": f"call-{number}-{index}"}
        about = {"type": "function_call", **ids}
        made = {"name": name, "arguments": json.dumps(given), "status": "completed"}
        items.append({**about, **made})
    return items


def _usage(turn: Turn) -> Json:
    read, written = turn.usage
    return {
        "input_tokens": read, "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": written, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }  # fmt: skip


def _item_events(index: int, item: Json, turn: Turn) -> list[Json]:
    about = {"output_index": index, "item_id": item["id"]}
    begun: Json = {"content": [], "summary": [], "arguments": "", "result": None}
    started = {key: begun.get(key, value) for key, value in item.items()}
    events = [_event("output_item.added", output_index=index, item=started)]
    for number, part in enumerate(item.get("content", [])):
        where = {**about, "content_index": number}
        if part["type"] == "refusal":
            events.append(_event("refusal.done", **where, refusal=part["refusal"]))
        else:
            deltas = [
                _event("output_text.delta", **where, delta=w, logprobs=[]) for w in turn.words
            ]
            done = _event("output_text.done", **where, text=part["text"], logprobs=[])
            events += [*deltas, done]
    for number, part in enumerate(item.get("summary", [])):
        where = {**about, "summary_index": number}
        empty = {"type": "summary_text", "text": ""}
        events.append(_event("reasoning_summary_part.added", **where, part=empty))
        events.append(_event("reasoning_summary_text.delta", **where, delta=part["text"]))
    if item["type"] == "function_call":
        given = item["arguments"]
        for part in (given[:4], given[4:-1] if turn.cut else given[4:]):
            events.append(_event("function_call_arguments.delta", **about, delta=part))
    if not turn.cut:
        events.append(_event("output_item.done", output_index=index, item=item))
    return events


def _event(name: str, **data: Any) -> Json:
    return {"type": f"response.{name}", **data}
