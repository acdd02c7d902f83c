"""PostgreSQL accepts connections but does not answer, is slow, or is unreachable."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from tests.chaos.agents import Plan
from tests.chaos.fleet import Fleet, call, fleet
from tests.parts.polling import ended, submitted, until
from tests.parts.postgres import cluster
from tests.parts.proxy import Proxy, Way, proxy

# A wait for a connection lasts half a minute.
_ANSWER_S = 10.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Proxy]]:
    with cluster() as server:
        url = sa.make_url(server.url)
        assert url.port is not None
        with proxy(url.port) as between:
            store_url = url.set(port=between.port).render_as_string()
            with fleet(tmp_path_factory.mktemp("silent"), store_url, 1) as ships:
                ships.start_all()
                yield ships, between


@pytest.fixture(autouse=True)
def heals(served: tuple[Fleet, Proxy]) -> Iterator[None]:
    """However a test ends, the next one begins with a database."""
    yield
    served[1].go(Way.OPEN)


def _refused(
    port: int, method: str, path: str, body: Any = None, key: Mapping[str, str] | None = None
) -> None:
    """Readiness reports in time that the store is unreachable."""
    began = time.monotonic()
    status, problem = call(port, method, path, body, key, timeout_s=30)
    took_s = time.monotonic() - began
    print(f"{method} {path} refused after {took_s:.2f} s")
    assert (status, problem["code"]) == (503, "store_unavailable")
    assert took_s < _ANSWER_S


def _store_is(port: int, state: str) -> Callable[[], bool]:
    def look() -> bool:
        status, health = call(port, "GET", "/health/ready")
        return status == 200 and bool(health["checks"]["store"]["state"] == state)

    return look


@pytest.mark.parametrize("way", [Way.SILENT, Way.SHUT])
def test_silent_database_delays_no_other_request(served: tuple[Fleet, Proxy], way: Way) -> None:
    """Requests that need the store are refused in time, others are served, and all recovers."""
    ships, between = served
    [port] = ships.ports
    work, once = Plan(f"work {way}", turns=3, seconds=0.7), Plan(f"once {way}")
    task_id = submitted(port, work.question)
    until(lambda: len(ships.receipts(work.name)) >= 3, "its second call has not begun")
    between.go(way)
    body, key = {"question": once.question}, {"Idempotency-Key": f"key {way}"}
    for _ in range(2):
        _refused(port, "POST", "/agent/async", body, key)
    for path in (f"/agent/async/{task_id}", f"/agent/async/{task_id}?wait=20", "/agent/async"):
        _refused(port, "GET", path)
    assert call(port, "GET", "/health/live")[0] == 200
    until(_store_is(port, "degraded"), "readiness does not tell")
    status, answer = call(port, "POST", "/agent", {"question": Plan("plain").question})
    assert (status, answer["answer"]) == (200, "plain: 1")
    assert not ships.receipts(once.name)
    between.go(Way.OPEN)
    task = ended(port, task_id)
    assert (task["status"], task["attempts"]) == ("completed", 1)
    assert [r.n for r in ships.receipts(work.name) if r.what == "begin"] == [0, 1, 2]
    replies = [call(port, "POST", "/agent/async", body, key, timeout_s=30) for _ in range(2)]
    assert [status for status, _ in replies] == [202, 202]
    [one] = {task["task_id"] for _, task in replies}
    assert ended(port, one)["status"] == "completed"
    assert [r.run_id for r in ships.receipts(once.name) if r.what == "begin"] == [one]
    until(_store_is(port, "ok"), "readiness stays red")


@pytest.mark.parametrize("way", [Way.SILENT, Way.SHUT])
@pytest.mark.parametrize("path", ["/agents/graph", "/agents/graph/stream"])
def test_caller_is_answered_at_the_deadline(
    served: tuple[Fleet, Proxy], path: str, way: Way
) -> None:
    """A run with a key and a thread ends at its deadline, whatever the database does."""
    ships, between = served
    [port] = ships.ports
    plan, name = Plan(f"waits {way} {path}", seconds=30.0), f"waits-{way}-{path.rpartition('/')[2]}"
    body = {"question": plan.question, "timeout": 3, "thread_id": name}
    with ThreadPoolExecutor(1) as caller:
        began = time.monotonic()
        asking = caller.submit(_last_word, port, path, body, {"Idempotency-Key": name})
        until(lambda: ships.receipts(plan.name), "its call has not begun")
        between.go(way)
        answer = asking.result(30)
    took_s = time.monotonic() - began
    print(f"{path} answered after {took_s:.2f} s")
    assert '"timeout"' in answer
    assert 2.9 < took_s < 3.0 + 1.5
    between.go(Way.OPEN)
    until(_store_is(port, "ok"), "readiness stays red")


def _last_word(port: int, path: str, body: Any, headers: Mapping[str, str]) -> str:
    """All that was answered, read to its end."""
    response = httpx.post(f"http://127.0.0.1:{port}{path}", json=body, headers=headers, timeout=30)
    return response.text


def test_slow_database_refuses_nothing(served: tuple[Fleet, Proxy]) -> None:
    """A slow database makes every answer slower, and refuses nothing."""
    ships, between = served
    [port] = ships.ports
    plan, body = Plan("slow"), {"question": Plan("slow").question}
    with ThreadPoolExecutor(4) as callers:  # so that there are connections: opening one is slow too
        list(callers.map(lambda _: call(port, "GET", "/agent/async", timeout_s=30), range(8)))
    between.delay_s = 0.25
    between.go(Way.SLOW)
    began = time.monotonic()
    status, accepted = call(
        port, "POST", "/agent/async", body, {"Idempotency-Key": "s"}, timeout_s=30
    )
    print(f"accepted after {time.monotonic() - began:.2f} s")
    assert status == 202
    assert call(port, "GET", f"/agent/async/{accepted['task_id']}", timeout_s=30)[0] == 200
    between.delay_s = 0.1  # or the test would take as long
    assert ended(port, accepted["task_id"])["result"]["answer"] == plan.answer
    print(f"ended after {time.monotonic() - began:.2f} s")


def test_server_stops_with_a_silent_database(served: tuple[Fleet, Proxy]) -> None:
    """A server stops in time on SIGTERM, with an executing run."""
    ships, between = served
    [port] = ships.ports
    plan = Plan("stopped", turns=2, seconds=0.1, held=1)
    task_id = submitted(port, plan.question)
    until(lambda: len(ships.receipts(plan.name)) >= 3, "its second call has not begun")
    between.go(Way.SILENT)
    began = time.monotonic()
    ships.signal(port, signal.SIGTERM)
    until(lambda: not ships.is_up(port), "it does not stop")
    took_s = time.monotonic() - began
    print(f"stopped after {took_s:.1f} s")
    assert took_s < 16
    between.go(Way.OPEN)
    ships.start(port)
    ships.until_up(port)
    assert ended(port, task_id)["result"]["answer"] == plan.answer
