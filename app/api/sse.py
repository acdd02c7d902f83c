"""Follows a run's events over HTTP as Server-Sent Events; whoever reads cannot hold the run."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api import problems
from app.api.headers import about
from app.api.schemas import FinishedRun
from app.runs.events import Emit, StreamClosed, StreamOpened
from app.runs.live import Ended, Run
from app.runs.ring import Entry

_PING_S = 15.0
_MOST_AT_ONCE = 200
_ABORT_S = 1.0
_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # proxies would hold events back to send them together
}


class EventStream(Response):
    """Sends a run's events after an id, until its `end`.

    A reader that leaves, or does not take what is sent within `write_s`, is gone: `on_gone` is
    called, which may stop the run.
    """

    media_type = "text/event-stream"

    def __init__(
        self, run: Run, emit: Emit, write_s: float, on_gone: Callable[[], None], after: int = 0
    ) -> None:
        self.status_code = 200
        self.background = None
        self._run = run
        self._ended = run.ended
        self._ring = run.ring
        self._emit = emit
        self._write_s = write_s
        self._on_gone = on_gone
        self._after = min(after, self._ring.last_id)  # nobody has read what is still to come
        self._opened_at = time.monotonic()
        self._first_event_s: float | None = None
        self.init_headers({**_HEADERS, **about(run)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the reader until the end of the run or its own."""
        who = {"run_id": self._run.id, "agent": self._run.agent.name}
        self._emit(StreamOpened(**who, at=self._opened_at))
        reading = asyncio.create_task(self._send_all(send), name=f"stream {self._run.id}")
        leaving = asyncio.create_task(_left(receive), name=f"reader {self._run.id}")
        reason = "left"
        try:
            await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reason = reading.result()
        finally:
            reading.cancel()
            leaving.cancel()
            if reason != "completed":
                self._on_gone()
            self._emit(
                StreamClosed(
                    **who, at=time.monotonic(), reason=reason, first_event_s=self._first_event_s
                )
            )
        if reason == "stalled" and (abort := scope.get("watchkeeper.abort")) is not None:
            abort()
            with suppress(TimeoutError):  # the server is to know before this returns
                await asyncio.wait_for(_left(receive), _ABORT_S)

    async def _send_all(self, send: Send) -> str:
        """Why it ended: completed, or stalled."""
        try:
            headers = self.raw_headers
            start = {"type": "http.response.start", "status": 200, "headers": headers}
            await asyncio.wait_for(send(start), self._write_s)
            while True:
                closed = self._ring.closed  # asked first: what is added before is seen below
                waiting = self._ring.since(self._after)
                # So much at once that a slow reader can take it in time.
                entries = waiting[:_MOST_AT_ONCE]
                body = b"".join(self._encoded(entries)) or KEEPALIVE_COMMENT
                at_end = bool(entries) and entries[-1].name == "end"
                done = at_end or (closed and len(entries) == len(waiting))
                part = {"type": "http.response.body", "body": body, "more_body": not done}
                await asyncio.wait_for(send(part), self._write_s)
                if entries and self._first_event_s is None:
                    self._first_event_s = time.monotonic() - self._opened_at
                if done:
                    return "completed"
                await self._ring.changed(self._after, _PING_S)
        except (TimeoutError, OSError):
            return "stalled"

    def _encoded(self, entries: list[Entry]) -> Iterator[bytes]:
        if entries and entries[0].id > self._after + 1:
            gap = {"after": self._after, "next": entries[0].id}
            yield _event("gap", gap, entries[0].id - 1)
        for entry in entries:
            self._after = entry.id
            yield _event(entry.name, self._data(entry), entry.id)

    def _data(self, entry: Entry) -> Mapping[str, Any]:
        if entry.name not in ("error", "end"):
            return entry.data
        return final(self._run, self._ended.result())


def final(run: Run, ended: Ended) -> dict[str, Any]:
    """The finished run, or the problem that stands for it."""
    if ended.error is not None:
        told: dict[str, Any] = json.loads(problems.body(problems.of_run(run, ended)))
        return told
    return FinishedRun.of(run, ended).model_dump(mode="json")


def _event(name: str, data: Mapping[str, Any], number: int) -> bytes:
    """JSON holds no line break and here no character but ASCII, so no text can forge an event."""
    return format_sse_event(data_str=json.dumps(data), event=name, id=str(number))


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
