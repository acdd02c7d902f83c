"""PostgreSQL goes away and comes back: nothing is accepted that is not stored, runs finish."""

import time
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa

from app.tasks.store import Store
from tests.chaos.agents import Plan
from tests.chaos.fleet import Fleet, call, fleet
from tests.parts.postgres import Cluster, cluster

WITHIN_S = 60.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Cluster]]:
    with cluster() as server, fleet(tmp_path_factory.mktemp("gone"), server.url, 1) as ships:
        ships.start_all()
        yield ships, server


def _end(port: int, task_id: str) -> str:
    end = time.monotonic() + WITHIN_S
    while time.monotonic() < end:
        status, told = call(port, "GET", f"/agent/async/{task_id}?wait=1")
        if status == 200 and told["status"] not in ("pending", "running"):
            return str(told["status"])
        time.sleep(0.2)
    raise AssertionError(f"{task_id} has not ended")


def test_gone_in_the_middle_of_a_run(served: tuple[Fleet, Cluster]) -> None:
    """While it is gone a submission is refused in time; the run at work finishes afterwards."""
    ships, server = served
    [port] = ships.ports
    plan, refused = Plan("through", turns=6, seconds=0.5), Plan("refused")
    task_id = call(port, "POST", "/agent/async", {"question": plan.question})[1]["task_id"]
    while len(ships.receipts(plan.name)) < 3:
        time.sleep(0.02)
    server.stop(at_once=True)
    try:
        began = time.monotonic()
        told = {"Idempotency-Key": "while-gone"}
        body = {"question": refused.question}
        status, problem = call(port, "POST", "/agent/async", body, told, timeout_s=30)
        took_s = time.monotonic() - began
        print(f"refused after {took_s:.2f} s")
        assert (status, problem["code"]) == (503, "store_unavailable")
        assert took_s < 5
        assert call(port, "GET", "/health/live")[0] == 200
        assert call(port, "GET", f"/agent/async/{task_id}", timeout_s=30)[0] == 503
    finally:
        server.start()
    assert _end(port, task_id) == "completed"
    assert not ships.receipts(refused.name)
    status, told_again = call(port, "POST", "/agent/async", body, told)
    assert status == 202
    assert _end(port, told_again["task_id"]) == "completed"
    assert len({r.run_id for r in ships.receipts(refused.name)}) == 1


def test_readiness_shows_it(served: tuple[Fleet, Cluster]) -> None:
    """A store that is gone is a degraded check, not a red light, and heals by itself."""
    ships, server = served
    [port] = ships.ports

    def becomes(state: str) -> None:
        end = time.monotonic() + 20
        while True:
            status, told = call(port, "GET", "/health/ready")
            if status == 200 and told["checks"]["store"]["state"] == state:
                return
            assert time.monotonic() < end, told
            time.sleep(0.1)

    becomes("ok")
    server.stop()
    try:
        becomes("degraded")
    finally:
        server.start()
    becomes("ok")


@pytest.mark.parametrize("table", ["operation_outputs", "workflow_output"])
def test_it_refuses_a_result(served: tuple[Fleet, Cluster], table: str) -> None:
    """A run whose step or result is refused, in a failover perhaps, ends once it is taken."""
    ships, server = served
    [port] = ships.ports
    plan = Plan(f"refused-{table}", turns=2)
    with psycopg.connect(server.url, autocommit=True) as session:
        session.execute(
            "create or replace function refuse() returns trigger language plpgsql as $$ begin "
            "raise exception 'read only' using errcode = '25006'; end $$"
        )
        session.execute(
            f"create trigger refused before insert on dbos.{table} "
            "for each row execute function refuse()".encode()
        )
        task_id = call(port, "POST", "/agent/async", {"question": plan.question})[1]["task_id"]
        end = time.monotonic() + WITHIN_S
        while True:
            told = call(port, "GET", f"/agent/async/{task_id}")[1]
            assert told["status"] in ("pending", "running"), told
            if told["attempts"] == 2:
                break
            assert time.monotonic() < end, told
            time.sleep(0.1)
        session.execute(f"drop trigger refused on dbos.{table}".encode())
    assert _end(port, task_id) == "completed"
    assert [r.n for r in ships.receipts(plan.name) if r.what == "end"] == [0, 1]


def test_a_transaction_that_hangs(served: tuple[Fleet, Cluster]) -> None:
    """Whoever hangs in a transaction, or left it to a child, does not hold a row for ever."""
    ships, server = served
    [port] = ships.ports
    question = Plan("held").question
    task_id = call(port, "POST", "/agent/async", {"question": question})[1]["task_id"]
    assert _end(port, task_id) == "completed"
    touch = sa.text("update dbos.workflow_status set name = name where workflow_uuid = :id")
    store = Store(server.url)
    for hangs, waits in ((store.worker, store.calls), (store.calls, store.worker)):
        with hangs.connect() as holder:
            holder.execute(touch, {"id": task_id})
            with waits.begin() as connection:
                connection.execute(sa.text("set local lock_timeout = '40s'"))
                assert connection.execute(touch, {"id": task_id}).rowcount == 1
            holder.invalidate()
    store.close()
