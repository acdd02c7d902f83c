"""SIGTERM while callers wait for background runs or follow them.

Callers of a process that leaves are answered, and learn the rest from the next one.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest
from dbos._sys_db import SystemDatabase

from app.tasks.engine import Engine
from tests import fakes
from tests.command import Serving, serving
from tests.service import served
from tests.streams.reading import StreamEvent, names_of, parse
from tests.tasks import background
from tests.tasks.test_roles import becomes_true, in_folder, post, view

NOTICE_S, DRAIN_S = 0.2, 0.3
# Callers would hold a process for a minute, and their run would for longer.
SOON_S = 25.0
LONG_NAP_S = 300.0
AGENT = """
from tests import fakes
from tests.tasks.background import calling

slow = calling("nap", fakes.ToolDesk(NAP_S))
"""


@contextmanager
def node(
    folder: Path,
    name: str,
    *arguments: str,
    drain_s: float = DRAIN_S,
    nap_s: float = LONG_NAP_S,
) -> Iterator[Serving]:
    """A process on the folder's store, whose agent naps for so long."""
    here = in_folder(folder, name)
    (here / "wk_slow.py").write_text(AGENT.replace("NAP_S", str(nap_s)))
    variables = {
        "WATCHKEEPER_STORE_URL": f"sqlite:///{folder / 'store.sqlite'}",
        "WATCHKEEPER_DRAIN_NOTICE_S": str(NOTICE_S),
        "WATCHKEEPER_DRAIN_S": str(drain_s),
    }
    with serving(here, "wk_slow:slow", *arguments, variables=variables) as service:
        yield service


@dataclass(frozen=True)
class Answer:
    """All that a caller was answered."""

    status: int
    headers: Message
    body: bytes


@dataclass
class Callers:
    """One that waits and one that follows, on connections of their own."""

    waits: "Future[Answer]"
    follows: "Future[Answer]"


@contextmanager
def calling(service: Serving, task_id: str, reads: bytes = b"") -> Iterator[Callers]:
    """Have both there, and the one that follows with so much read."""
    path, address = f"/agent/async/{task_id}", service.url.removeprefix("http://")
    with (
        closing(HTTPConnection(address, timeout=70)) as waiter,
        closing(HTTPConnection(address, timeout=70)) as follower,
        ThreadPoolExecutor(2) as pool,
    ):
        waiter.request("GET", f"{path}?wait=60")
        # An answered caller has arrived, and so have all who asked before.
        follower.request("GET", f"{path}/events")
        following, read = follower.getresponse(), b""
        while reads not in read:
            piece = following.read1(65536)
            assert piece, read
            read += piece
        try:
            yield Callers(
                pool.submit(lambda: _answer(waiter.getresponse())),
                pool.submit(_answer, following, read),
            )
        finally:
            if service.process.poll() is None:
                service.process.kill()


def _answer(response: HTTPResponse, read: bytes = b"") -> Answer:
    return Answer(response.status, response.headers, read + response.read())


def release(service: Serving, callers: Callers, task_id: str) -> list[StreamEvent]:
    """Signal the process: both are answered, and it ends soon. What the follower has read."""
    began = time.monotonic()
    service.signal()
    waited, followed = callers.waits.result(30), callers.follows.result(30)
    assert service.wait(30) == 0
    assert time.monotonic() - began < NOTICE_S + DRAIN_S + SOON_S
    assert waited.status == followed.status == 200
    assert json.loads(waited.body)["status"] in ("pending", "running")
    assert int(waited.headers["retry-after"]) >= 1
    assert {waited.headers["x-run-id"], followed.headers["x-run-id"]} == {task_id}
    output = service.out.read_text() + service.err.read_text()
    assert "Exception in ASGI" not in output
    assert '"level":"error"' not in output
    events = parse(followed.body)
    assert "end" not in names_of(events)
    return events


def test_api_process_answers_waiters_after_the_notice(tmp_path: Path) -> None:
    """A process without work of its own answers its waiting callers after the notice."""
    with node(tmp_path, "api", "--no-background") as asked:
        task_id = post(asked, "/agent/async").json()["task_id"]
        with calling(asked, task_id) as callers:
            assert release(asked, callers, task_id) == []


def test_follower_resumes_at_the_next_process(tmp_path: Path) -> None:
    """A follower resumes at the next process without a gap when its process hands the run over."""
    with node(tmp_path, "first") as first:
        task_id = post(first, "/agent/async").json()["task_id"]
        assert becomes_true(lambda: view(first, task_id)["status"] == "running")
        with calling(first, task_id, b"tool_start") as callers:
            events = release(first, callers, task_id)
    assert "tool_start" in names_of(events)
    with node(tmp_path, "second", nap_s=0) as second:
        address = f"{second.url}/agent/async/{task_id}/events"
        headers = {"Last-Event-ID": str(events[-1].id)}
        events += parse(httpx.get(address, headers=headers, timeout=60).content)
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert names_of(events)[-1] == "end"


def test_run_that_ends_in_the_drain_is_answered(tmp_path: Path) -> None:
    """A waiting caller gets the answer, and a follower reads the end."""
    with node(tmp_path, "patient", drain_s=30, nap_s=3) as first:
        task_id = post(first, "/agent/async").json()["task_id"]
        assert becomes_true(lambda: view(first, task_id)["status"] == "running")
        with calling(first, task_id) as callers:
            first.signal()
            waited, followed = callers.waits.result(30), callers.follows.result(30)
            assert json.loads(waited.body)["status"] == "completed"
            assert names_of(parse(followed.body))[-1] == "end"
            assert first.wait(30) == 0


async def test_waiter_gets_an_end_that_is_stored_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draining process answers its waiting callers, however slowly the end is stored."""
    stores = SystemDatabase.update_workflow_outcome

    def slowly(*arguments: Any, **named: Any) -> None:
        time.sleep(0.7)
        stores(*arguments, **named)

    monkeypatch.setattr(SystemDatabase, "update_workflow_outcome", slowly)
    agents = {"slow": background.calling("nap", fakes.ToolDesk(0.5))}
    async with served(agents, store_url=background.url_in(tmp_path)) as desk:
        task_id = await background.submit(desk)
        await desk.executing(task_id)
        waiting = asyncio.create_task(background.view(desk, task_id, 60))
        await asyncio.sleep(0.2)
        engine = desk.service.engine
        assert isinstance(engine, Engine)
        engine.stop_taking_runs()
        await desk.service.runner.drain(0.0, 30.0)
        await engine.release_waiters()
        assert (await asyncio.wait_for(waiting, 10))["status"] == "completed"
