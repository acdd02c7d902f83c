"""Speaks the wire of the Gemini API."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_google_genai import ChatGoogleGenerativeAI

from tests.ecosystem.wire import Json, Turn, event, serving


class Google:
    streams_as = "text/event-stream"

    def wants_stream(self, path: str, asked: Json) -> bool:
        return "streamGenerateContent" in path

    def whole(self, turn: Turn, number: int) -> Json:
        return _answer(turn, _parts(turn, [turn.text]), turn.reason or "STOP")

    def pieces(self, turn: Turn, number: int) -> Iterator[bytes]:
        parts = _parts(turn, turn.words)
        for index, part in enumerate(parts):
            # As Gemini does: each of the last two chunks says why the message ended.
            late = not turn.cut and index >= len(parts) - 2
            yield event(_answer(turn, [part], (turn.reason or "STOP") if late else None))
        if not parts:
            yield event(_answer(turn, [], None if turn.cut else turn.reason or "STOP"))

    def failure(self, turn: Turn) -> Json:
        sentence = turn.text or "secret-in-exception"
        return {"error": {"code": turn.status, "message": sentence, "status": "INTERNAL"}}


@asynccontextmanager
async def model(*turns: Turn, **options: Any) -> AsyncIterator[ChatGoogleGenerativeAI]:
    """The real client, of a server that says these turns."""
    with serving(Google(), turns) as wire:
        client = ChatGoogleGenerativeAI(
            model="gemini-2.5-flash",
            base_url=wire.url,
            api_key="not-a-secret",
            max_retries=1,
            **options,
        )
        try:
            yield client
        finally:
            await client.aclose()


def _answer(turn: Turn, parts: list[Json], reason: str | None) -> Json:
    tokens = {"promptTokenCount": turn.usage[0], "candidatesTokenCount": turn.usage[1]}
    usage = {**tokens, "totalTokenCount": sum(turn.usage)}
    answer = {"usageMetadata": usage, "modelVersion": "gemini-2.5-flash", "responseId": "r1"}
    if turn.blocked:
        return {**answer, "promptFeedback": {"blockReason": turn.blocked}}
    candidate: Json = {"content": {"role": "model", "parts": parts}, "index": 0}
    if reason is not None:
        candidate["finishReason"] = reason
    return {**answer, "candidates": [candidate]}


def _parts(turn: Turn, words: list[str]) -> list[Json]:
    parts: list[Json] = []
    if turn.thinking:
        parts.append({"text": turn.thinking, "thought": True})
    parts += [{"text": word} for word in words if word]
    if turn.image:
        parts.append({"inlineData": {"mimeType": "image/png", "data": turn.image}})
    if turn.audio:
        parts.append({"inlineData": {"mimeType": "audio/wav", "data": turn.audio}})
    return parts + [{"functionCall": {"name": name, "args": given}} for name, given in turn.calls]
