"""Ten token streams at once, from a model over a real socket: how late, and at what CPU a token.

The same agent alone (`astream`), in the shortest FastAPI app that forwards `astream_events`, and
in Watchkeeper, taken in turns.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import uvloop

from bench import table
from bench.process import Server, running, uvicorn, watchkeeper
from tests.ports import free_port
from tests.upstreams import aimock

CLIENTS, ROUNDS = 10, 4
TTFT_MS, TOKENS_A_SECOND = 300, 50
QUESTION = "Where are orders 10023, 10024 and 10025?"
_MODEL_CALLS = 2
HEADS = ("", "added to first text p50 ms", "p95 ms", "CPU ms a token", "least")


@dataclass
class Figures:
    """The measurements of one contender, round by round."""

    first_s: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


def run() -> bool:
    """Measure and print. Returns false if an answer was wrong."""
    seen = {name: Figures() for name in ("bare astream", "FastAPI, astream_events", "Watchkeeper")}
    with ExitStack() as stack:
        upstream = stack.enter_context(aimock(ttft_ms=TTFT_MS, tokens_per_s=TOKENS_A_SECOND))
        environment = {"OPENAI_BASE_URL": upstream, "OPENAI_API_KEY": "not-a-secret"}
        ports = [free_port(), free_port(), free_port()]
        commands = [
            uvicorn("bench.plain:bare_stream_app", ports[0]),
            uvicorn("bench.plain:stream_app", ports[1]),
            watchkeeper("examples.create_agent:orders", ports[2]),
        ]
        servers = [
            stack.enter_context(running(command, port, environment))
            for command, port in zip(commands, ports, strict=True)
        ]
        for server, path in zip(
            servers, ("/openapi.json", "/openapi.json", "/health"), strict=True
        ):
            server.wait_until(path)
        for number in range(ROUNDS + 1):
            for server, port, figures in zip(servers, ports, seen.values(), strict=True):
                measured = uvloop.run(_round(server, port))
                if number:  # the first round warms up
                    figures.first_s += measured[0]
                    figures.cpu_ms.append(measured[1])
    _show(seen)
    return True


async def _round(server: Server, port: int) -> tuple[list[float], float]:
    before = server.cpu_s()
    streams = await asyncio.gather(*(_read(port) for _ in range(CLIENTS)))
    spent_s = server.cpu_s() - before
    tokens = sum(count for _, count in streams)
    return [first_s for first_s, _ in streams], spent_s * 1000 / tokens


async def _read(port: int) -> tuple[float, int]:
    """Return the seconds to the first text, and the number of pieces of text."""
    began, first_s, texts = time.perf_counter(), 0.0, list[str]()
    async for text in _texts(port):
        if not texts:
            first_s = time.perf_counter() - began
        texts.append(text)
    if "10025" not in "".join(texts):
        raise RuntimeError(f"a wrong answer: {''.join(texts)!r}")
    return first_s, len(texts)


async def _texts(port: int) -> AsyncIterator[str]:
    """Yield the text of each event with text."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"question": QUESTION}).encode()
    writer.write(
        b"POST /agent/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    try:
        while line := await asyncio.wait_for(reader.readline(), 60):
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if isinstance(event, dict) and event.get("text"):
                    yield event["text"]
    finally:
        writer.close()


def _show(seen: dict[str, Figures]) -> None:
    given_s = _MODEL_CALLS * TTFT_MS / 1000
    rows = [
        (
            name,
            (table.percentile(figures.first_s, 50) - given_s) * 1000,
            (table.percentile(figures.first_s, 95) - given_s) * 1000,
            sorted(figures.cpu_ms)[len(figures.cpu_ms) // 2],
            min(figures.cpu_ms),
        )
        for name, figures in seen.items()
    ]
    title = f"stream: {CLIENTS} at once, first token after {TTFT_MS} ms, {TOKENS_A_SECOND} tokens/s"
    table.show(title, HEADS, rows)
    bare, events, ours = (figures.cpu_ms for figures in seen.values())
    print(f"  Watchkeeper / astream_events (aim: below 1.00)  {table.ratio(ours, events)}")
    print(f"  Watchkeeper / bare astream                      {table.ratio(ours, bare)}")
