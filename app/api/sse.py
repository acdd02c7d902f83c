"""Sends the events of a run as Server-Sent Events; a slow reader never delays the run."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeAlias

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api import connection
from app.api.connection import disconnected
from app.api.headers import run_headers
from app.api.results import render
from app.runs.events import Emit, StreamClosed, StreamOpened
from app.runs.live import Run
from app.runs.ring import Entry
from app.runs.tasks import Body

_PING_S = 15.0
_MAX_ENTRIES = 200
_ABORT_S = 1.0
_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # proxies would delay events to send them together
}


# Bytes that are sent together, and whether they are the last.
Piece: TypeAlias = tuple[bytes, bool]


class EventStream(Response):
    """Sends the events of `pieces` until their end, or until the reader is lost.

    A reader is lost if it disconnects, or does not read within `write_timeout_s`. The stream then
    calls `on_reader_lost`, which may stop the run.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        ids: Mapping[str, str],
        headers: Mapping[str, str],
        emit: Emit,
        write_timeout_s: float,
        on_reader_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._ids = dict(ids)
        self._emit = emit
        self._write_timeout_s = write_timeout_s
        self._on_reader_lost = on_reader_lost
        self._opened_at = time.monotonic()
        self._first_event_s: float | None = None
        self.init_headers({**_HEADERS, **headers})

    def pieces(self) -> AsyncIterator[Piece]:
        """Yield pieces as they come; an empty one only keeps the connection alive."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the reader until the end of the events, or until it is lost."""
        run_id, agent = self._ids["run_id"], self._ids["agent"]
        self._emit(StreamOpened(run_id=run_id, agent=agent, at=self._opened_at))
        sending = asyncio.create_task(self._send_all(send), name=f"stream {run_id}")
        leaving = asyncio.create_task(disconnected(receive), name=f"reader {run_id}")
        reason = "left"
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                reason = sending.result()
        finally:
            sending.cancel()
            leaving.cancel()
            if reason != "completed":
                self._on_reader_lost()
            self._emit(
                StreamClosed(
                    run_id=run_id,
                    agent=agent,
                    at=time.monotonic(),
                    reason=reason,
                    first_event_s=self._first_event_s,
                )
            )
        if reason == "stalled" and connection.abort(scope):
            with suppress(TimeoutError):  # wait until the server has noticed the abort
                await asyncio.wait_for(disconnected(receive), _ABORT_S)

    async def _send_all(self, send: Send) -> str:
        """Send all pieces. Return why the stream ended: `completed` or `stalled`."""
        try:
            headers = self.raw_headers
            start = {"type": "http.response.start", "status": 200, "headers": headers}
            # Not `wait_for`: on Python 3.11 it loses a cancellation that arrives at the end.
            async with asyncio.timeout(self._write_timeout_s):
                await send(start)
            pinged_at = time.monotonic()
            async with aclosing(self.pieces()) as pieces:  # type: ignore[type-var]
                async for body, done in pieces:
                    now = time.monotonic()
                    if not body and not done and now - pinged_at < 0.9 * _PING_S:
                        continue
                    pinged_at = now
                    part = {
                        "type": "http.response.body",
                        "body": body or KEEPALIVE_COMMENT,
                        "more_body": not done,
                    }
                    async with asyncio.timeout(self._write_timeout_s):
                        await send(part)
                    if body and self._first_event_s is None:
                        self._first_event_s = time.monotonic() - self._opened_at
            return "completed"
        except (TimeoutError, OSError):
            return "stalled"


class RunStream(EventStream):
    """Sends the events of a run in this process: those after the id `after`, up to `end`.

    It awaits `before_end` before it sends the last piece.
    """

    def __init__(
        self,
        run: Run,
        emit: Emit,
        write_timeout_s: float,
        on_reader_lost: Callable[[], None] = lambda: None,
        after: int = 0,
        before_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        ids = {"run_id": run.id, "agent": run.agent.name}
        super().__init__(ids, run_headers(run), emit, write_timeout_s, on_reader_lost)
        self._run = run
        self._ring = run.ring
        self._before_end = before_end
        self._after = min(after, self._ring.last_id)  # an unknown later id counts as the last

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the events of the ring, in pieces that a slow reader can read in time."""
        while True:
            closed = self._ring.closed  # before `since`, so that no entry is missed
            waiting = self._ring.since(self._after)
            entries = waiting[:_MAX_ENTRIES]
            body = b"".join(self._encoded(entries))
            at_end = bool(entries) and entries[-1].name == "end"
            done = at_end or (closed and len(entries) == len(waiting))
            if done and self._before_end is not None:
                await self._before_end()
            yield body, done
            if done:
                return
            await self._ring.changed(self._after, _PING_S)

    def _encoded(self, entries: list[Entry]) -> Iterator[bytes]:
        if entries and entries[0].id > self._after + 1:
            gap = {"after": self._after, "next": entries[0].id}
            yield event("gap", gap, entries[0].id - 1)
        for entry in entries:
            self._after = entry.id
            yield event(entry.name, self._data(entry), entry.id)

    def _data(self, entry: Entry) -> Mapping[str, Any]:
        if entry.name not in ("error", "end"):
            return entry.data
        return render(self._run, self._run.ended.result())


class Replay(EventStream):
    """Sends the stored answer of a run with the same Idempotency-Key, as if the run were new."""

    def __init__(self, stored: Body, emit: Emit, write_timeout_s: float) -> None:
        ids = {"run_id": str(stored["run_id"]), "agent": str(stored.get("agent", ""))}
        headers = {"X-Run-Id": ids["run_id"], "Idempotent-Replay": "true"}
        super().__init__(ids, headers, emit, write_timeout_s)
        self._stored = stored

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield one piece: `run`, the answer as one `token` (or the `error`), and `end`."""
        stored = dict(self._stored)
        start = {name: stored.get(name) for name in ("run_id", "trace_id", "agent", "demo")}
        limits = {"deadline_s": None, "iteration_limit": stored.get("iteration_limit")}
        token: dict[str, Any] = {"text": stored.get("answer"), "agent": None}
        token["iteration"] = (stored.get("iterations") or 0) + 1
        events = [("run", {**start, **limits})]
        events.append(("error", stored) if "code" in stored else ("token", token))
        events.append(("end", stored))
        parts = [event(name, data, n) for n, (name, data) in enumerate(events, start=1)]
        yield b"".join(parts), True


def event(name: str, data: Mapping[str, Any], number: int) -> bytes:
    """Return one event as bytes. Its JSON is one ASCII line, so no text can forge an event."""
    return format_sse_event(data_str=json.dumps(data), event=name, id=str(number))
