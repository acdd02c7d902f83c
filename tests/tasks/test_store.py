"""Service without a store, with a store that is full or refuses, and after a restart."""

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.pool import QueuePool

from app.agents import checkpoints
from app.api.deps import Role
from app.runs.events import RunRecovered
from app.tasks.recovery import MAX_TAKEOVERS_WITHOUT_PROGRESS
from app.tasks.store import _CALLER_BUSY_MS, ANSWER_S, Store
from tests import fakes
from tests.command import ROOT
from tests.service import served, until
from tests.tasks.background import (
    LONG_S,
    Held,
    calling,
    ended,
    post,
    quick,
    submit,
    url_in,
    view,
)

FULL = 10**18


async def test_background_runs_need_a_store() -> None:
    """Without a store, background runs, their list and keys get 503."""
    async with served({"a": quick()}) as desk:
        payload = {"question": "hello"}
        keyed = {"Idempotency-Key": "k"}
        for response in (
            await post(desk),
            await desk.client.get("/agent/async"),
            await desk.client.post("/agent", json=payload, headers=keyed),
        ):
            assert (response.status_code, response.json()["code"]) == (503, "store_unavailable")
            assert int(response.headers["retry-after"]) >= 1


async def test_store_call_cancelled_as_it_ends_stays_cancelled(tmp_path: Path) -> None:
    """A store call that is cancelled as it ends raises the cancellation, not its result."""
    loop, store = asyncio.get_running_loop(), await asyncio.to_thread(Store, url_in(tmp_path))
    calls: list[asyncio.Task[None]] = []
    for _ in range(50):

        def work() -> None:
            loop.call_soon_threadsafe(lambda: loop.call_soon(calls[-1].cancel))

        calls.append(asyncio.create_task(store.call(work)))
        await asyncio.wait({calls[-1]})
    await asyncio.to_thread(store.close)
    assert all(call.cancelled() for call in calls)


@pytest.mark.on_file
async def test_full_store_refuses_submissions(tmp_path: Path) -> None:
    """Below the reserve new runs are refused, and accepted runs finish."""
    desk_of_tools = fakes.ToolDesk(1.0)
    agents = {"slow": calling("nap", desk_of_tools), "quick": quick()}
    store = url_in(tmp_path)
    async with served(agents, store_url=store) as desk:
        first = await post(desk, key="early")
        accepted = first.json()["task_id"]
        await desk_of_tools.started_calls()
    async with served(agents, store_url=store, store_reserve_bytes=FULL) as desk:
        refused = await post(desk, key="k", thread_id="t")
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        repeated = await post(desk, key="early")
        assert (repeated.status_code, repeated.json()["task_id"]) == (202, accepted)
        ready = (await desk.client.get("/health/ready")).json()
        assert ready["status"] == "ready"
        assert ready["checks"]["store"]["state"] == "degraded"
        metrics = (await desk.client.get("/metrics")).text
        assert 'agent_ready{check="store"} 0.0' in metrics
        assert "agent_store_free_bytes" in metrics
        assert "agent_journal_age_seconds 0.0" in metrics
        assert (await ended(desk, accepted))["status"] == "completed"
        assert (await desk.ask(agent="quick")).status_code == 200
    async with served(agents, store_url=store) as desk:
        task = await ended(desk, await submit(desk, agent="quick"))
        assert task["status"] == "completed"


@pytest.mark.on_file
@pytest.mark.parametrize("how", ["a setting", "a worker"])
async def test_readiness_requires_the_store_if_set(how: str, tmp_path: Path) -> None:
    """WATCHKEEPER_READY_REQUIRES makes readiness need the store; a worker always needs it."""
    required = ("store",) if how == "a setting" else ()
    options: dict[str, Any] = {"store_reserve_bytes": FULL, "ready_requires": required}
    async with served({"quick": quick()}, store_url=url_in(tmp_path), **options) as desk:
        if how == "a worker":
            desk.service.role = Role.WORKER
        ready = await desk.client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
        assert ready.json()["checks"]["store"]["state"] == "failed"
        assert (await desk.client.get("/health/live")).status_code == 200


@pytest.mark.on_file
async def test_locked_store_refuses_submissions_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submission is refused in time, one key is one run, and the executing run still ends."""
    monkeypatch.setattr("app.tasks.store.ANSWER_S", ANSWER_S)
    monkeypatch.setattr("app.tasks.store._CALLER_BUSY_MS", _CALLER_BUSY_MS)
    tools = fakes.ToolDesk(1.0)
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("nap", turns=3))
    agents = {"a": fakes.build("create_agent", model, tools.tools())}
    async with served(agents, store_url=url_in(tmp_path)) as desk:
        at_work = await submit(desk)
        await tools.started_calls()
        with sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None) as other:
            other.execute("begin immediate")
            began = time.monotonic()
            refused = await post(desk, key="k")
            assert time.monotonic() - began < 10
            assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
            assert int(refused.headers["retry-after"]) >= 1
            await until(lambda: desk.service.engine and not desk.service.engine.stats.reachable, 20)
            ready = await desk.client.get("/health/ready")
            assert (ready.status_code, ready.json()["checks"]["store"]["state"]) == (
                200,
                "degraded",
            )
            other.execute("rollback")
        ended_task = await ended(desk, at_work)
        assert (ended_task["status"], ended_task["result"]["iterations"]) == ("completed", 3)
        again = await post(desk, key="k")  # only a repeat shows whether it was stored
        assert again.status_code == 202
        await ended(desk, again.json()["task_id"])
        listed = (await desk.client.get("/agent/async")).json()["tasks"]
        assert [task["task_id"] for task in listed] == [again.json()["task_id"], at_work]


async def test_conversation_outlives_the_service(tmp_path: Path) -> None:
    """A thread goes on after a restart; it can be read and deleted."""
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("look", {"order": "7"}))
    agents = {"a": fakes.build("create_agent", model, fakes.ToolDesk().tools())}
    for question in ("one", "two"):
        async with served(agents, store_url=url_in(tmp_path)) as desk:
            task = await ended(desk, await submit(desk, question, thread_id="t"))
            assert task["result"]["answer"] == f"done: {question}: order 7 shipped"
            messages = (await desk.client.get("/threads/t")).json()["messages"]
            if question == "two":
                people = [m["content"] for m in messages if m["type"] == "human"]
                assert people == ["one", "two"]
                assert (await desk.client.delete("/threads/t")).status_code == 204
                assert (await desk.client.get("/threads/t")).status_code == 404


async def test_one_run_at_a_time_holds_a_thread(tmp_path: Path) -> None:
    """A background run holds its thread until it ends: any other run gets 409."""
    tools = Held()
    async with served({"slow": calling("nap", tools)}, store_url=url_in(tmp_path)) as desk:
        first = await submit(desk, thread_id="t")
        await tools.started_calls()
        for response in (await post(desk, thread_id="t"), await desk.ask(thread_id="t")):
            assert (response.status_code, response.json()["code"]) == (409, "in_flight")
        await desk.client.delete(f"/agent/async/{first}")
        assert (await desk.client.get("/threads/t")).status_code == 404
        second = await post(desk, thread_id="t")
        assert second.status_code == 202
        retried = await desk.client.post(f"/agent/async/{first}/retry")
        assert (retried.status_code, retried.json()["code"]) == (409, "in_flight")


@pytest.mark.on_file
async def test_run_whose_result_is_refused_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose result cannot be stored in any form is retried, however long that takes."""
    monkeypatch.setattr("app.tasks.recovery.ORPHAN_S", 0.1)
    monkeypatch.setattr("app.tasks.supervisor._EVERY_S", 0.1)
    tools = fakes.ToolDesk()
    async with served({"a": calling("look", tools)}, store_url=url_in(tmp_path)) as desk:

        def store(statement: str) -> None:
            with closing(sqlite3.connect(tmp_path / "store.sqlite", timeout=LONG_S)) as file, file:
                file.execute(statement)

        store(
            "create trigger refuses before insert on workflow_output"
            " begin select raise(fail, 'refused by a constraint'); end"
        )
        task_id = await submit(desk)
        async with asyncio.timeout(2 * LONG_S):
            while len(desk.facts_of(RunRecovered)) <= MAX_TAKEOVERS_WITHOUT_PROGRESS:
                task = await view(desk, task_id)
                assert task["status"] in ("pending", "running"), task
                await asyncio.sleep(0.05)
        store("drop trigger refuses")
        task = await ended(desk, task_id)
        assert (task["status"], task["result"]["tool_calls"]) == ("completed", 1)
        assert tools.started == ["look"]


def test_documented_number_of_connections_is_the_maximum() -> None:
    """The deployment page gives the maximum of connections that a process opens."""
    store = Store("postgresql://nobody@127.0.0.1/none")
    of_locks, of_steps = 2, checkpoints._CONNECTIONS
    most = of_locks + of_steps
    for pool in (store.calls.pool, store.worker.pool):
        assert isinstance(pool, QueuePool)
        most += pool.size() + pool._max_overflow
    page = (ROOT / "docs" / "deploy.md").read_text()
    assert f"at most {most} connections" in " ".join(page.split())
    store.close()
