"""PostgreSQL stops and returns: no run is accepted unless it is stored, and runs finish."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.tasks.store import Store
from tests.chaos.agents import RECEIPTS, Plan, receipts
from tests.chaos.fleet import Fleet, call, fleet
from tests.command import Serving, serving
from tests.parts.polling import ended, submitted, until
from tests.parts.postgres import Cluster, cluster

# Longer than every bound on a wait for a connection, and soon after a try of a pool that tries
# less and less often (after 31 s), long before the next one (after 63 s).
_LONG_S = 36.0
_DRAIN_S = 1


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Cluster]]:
    with cluster() as server, fleet(tmp_path_factory.mktemp("gone"), server.url, 1) as ships:
        ships.start_all()
        yield ships, server


def test_outage_in_the_middle_of_a_run(served: tuple[Fleet, Cluster]) -> None:
    """During the outage a submission is refused in time; the executing run finishes afterwards."""
    ships, server = served
    [port] = ships.ports
    plan, refused = Plan("through", turns=6, seconds=0.5), Plan("refused")
    task_id = submitted(port, plan.question)
    until(lambda: len(ships.receipts(plan.name)) >= 3, "its second call has not begun")
    server.stop(at_once=True)
    try:
        began = time.monotonic()
        headers = {"Idempotency-Key": "while-gone"}
        body = {"question": refused.question}
        status, problem = call(port, "POST", "/agent/async", body, headers, timeout_s=30)
        took_s = time.monotonic() - began
        print(f"refused after {took_s:.2f} s")
        assert (status, problem["code"]) == (503, "store_unavailable")
        assert took_s < 10  # a caller that waits for a connection waits for half a minute
        assert call(port, "GET", "/health/live")[0] == 200
        assert call(port, "GET", f"/agent/async/{task_id}", timeout_s=30)[0] == 503
    finally:
        server.start()
    assert ended(port, task_id)["status"] == "completed"
    assert not ships.receipts(refused.name)
    status, repeated = call(port, "POST", "/agent/async", body, headers, timeout_s=30)
    assert status == 202
    assert ended(port, repeated["task_id"])["status"] == "completed"
    assert len({r.run_id for r in ships.receipts(refused.name)}) == 1


def test_readiness_is_degraded_during_an_outage(served: tuple[Fleet, Cluster]) -> None:
    """An unreachable store is a degraded check, not a red one, and recovers by itself."""
    ships, server = served
    [port] = ships.ports

    def becomes(state: str) -> None:
        def is_so() -> bool:
            status, health = call(port, "GET", "/health/ready")
            return status == 200 and bool(health["checks"]["store"]["state"] == state)

        until(is_so, f"it is not {state}")

    becomes("ok")
    server.stop()
    try:
        becomes("degraded")
    finally:
        server.start()
    becomes("ok")


def test_long_outage_repeats_no_tool(served: tuple[Fleet, Cluster]) -> None:
    """A run resumes soon after the outage, however long it was, and no tool runs again."""
    ships, server = served
    [port] = ships.ports
    plan = Plan("long", turns=3, seconds=1.0)
    task_id = submitted(port, plan.question)
    until(lambda: len(ships.receipts(plan.name)) >= 3, "its second call has not begun")
    server.stop(at_once=True)
    time.sleep(_LONG_S)
    server.start()
    back_at = time.monotonic()
    task = ended(port, task_id)
    took_s = time.monotonic() - back_at
    print(f"ended {took_s:.1f} s after it was back")
    assert (task["status"], task["attempts"]) == ("completed", 1)
    assert (task["result"]["answer"], task["result"]["iterations"]) == (plan.answer, 3)
    assert [r.n for r in ships.receipts(plan.name) if r.what == "begin"] == [0, 1, 2]
    assert took_s < 15


def test_server_stops_during_an_outage(served: tuple[Fleet, Cluster], tmp_path: Path) -> None:
    """A server stops in order and in time, and another one takes over its run."""
    _, cluster_of_all = served
    file, plan = tmp_path / "receipts", Plan("stopped", turns=3, seconds=0.1, held=1)
    variables = {
        "WATCHKEEPER_STORE_URL": cluster_of_all.fresh("stopped"),
        "WATCHKEEPER_DRAIN_NOTICE_S": "0",
        "WATCHKEEPER_DRAIN_S": str(_DRAIN_S),
        RECEIPTS: str(file),
    }
    agent = "graph=tests.chaos.agents:graph"
    with serving(tmp_path, agent, variables=variables) as first:
        task_id = submitted(_port(first), plan.question)
        until(lambda: len(receipts(file)) >= 3, "its second call has not begun")
        cluster_of_all.stop(at_once=True)
        try:
            began = time.monotonic()
            first.signal(signal.SIGTERM)
            code = first.wait(60)
            took_s = time.monotonic() - began
        finally:
            cluster_of_all.start()
    print(f"stopped after {took_s:.1f} s")
    assert code == 0
    assert took_s < _DRAIN_S + 15
    with serving(tmp_path, agent, variables=variables) as second:
        task = ended(_port(second), task_id)
    assert (task["status"], task["attempts"]) == ("completed", 2)
    assert task["result"]["answer"] == plan.answer
    assert [r.n for r in receipts(file) if r.what == "begin"].count(0) == 1


def _port(server: Serving) -> int:
    return int(server.url.rpartition(":")[2])


def test_hanging_transaction_releases_its_row(
    served: tuple[Fleet, Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hanging transaction, or one left to a child, does not lock a row for ever."""
    ships, server = served
    [port] = ships.ports
    question = Plan("held").question
    task_id = submitted(port, question)
    assert ended(port, task_id)["status"] == "completed"
    touch = sa.text("update dbos.workflow_status set name = name where workflow_uuid = :id")
    monkeypatch.setattr("app.tasks.store._HELD_MS", 3_000)  # or it would be ten seconds, twice
    store = Store(server.url)
    for hangs, waits in ((store.worker, store.calls), (store.calls, store.worker)):
        with hangs.connect() as holder:
            holder.execute(touch, {"id": task_id})
            with waits.begin() as connection:
                connection.execute(sa.text("set local lock_timeout = '40s'"))
                assert connection.execute(touch, {"id": task_id}).rowcount == 1
            holder.invalidate()
    store.close()
