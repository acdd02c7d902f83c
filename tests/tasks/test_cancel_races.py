"""A cancel that meets a run just as it starts or ends: every process reports the same."""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa
from dbos._sys_db import SystemDatabase

from app.runs.background import Background, Log
from app.runs.errors import HandedOver, StoreUnavailable
from app.runs.events import RunFinished, RunHandedOver, RunStarted
from app.runs.tasks import STOP_S
from app.runs.tasks import task_id as new_id
from app.tasks.queries import Queries
from app.tasks.recovery import Recovery
from app.tasks.rows import ATTEMPTS, OUTCOME, STARTED
from app.tasks.states import STOPPING, state_of
from app.tasks.transitions import Claim
from app.tasks.worker import Worker
from tests import fakes
from tests.service import Served, served, until
from tests.tasks.background import calling, ended, post, submit, url_in, view
from tests.waiting import came_true

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    quick, slow = fakes.ToolDesk(), fakes.ToolDesk(60)
    agents = {"look": calling("look", quick), "nap": calling("nap", slow)}
    async with served(agents, store_url=url_in(tmp_path_factory.mktemp("races"))) as service:
        yield service


def has_begun(desk: Served, task_id: str) -> bool:
    """Whether a run was executing, though it may have ended since."""
    return any(fact.run_id == task_id for fact in desk.facts_of(RunStarted))


async def statuses_until(desk: Served, deleting: "asyncio.Task[Any]", task_id: str) -> set[str]:
    """Every status that a caller could read meanwhile."""
    seen = set()
    while not deleting.done():
        seen.add((await view(desk, task_id))["status"])
    return seen


def ends_wait(patch: pytest.MonkeyPatch) -> asyncio.Event:
    """Until this is set, runs that have emitted their end do not store it."""
    may_store = asyncio.Event()
    stores = Log.finish

    async def finish(log: Log, *asked: Any) -> None:
        await may_store.wait()
        await stores(log, *asked)

    patch.setattr(Log, "finish", finish)
    return may_store


async def test_reported_end_stands(desk: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a run ends as it is cancelled, its process decides, and nobody overrides it."""
    may_store = ends_wait(monkeypatch)
    task_id = await submit(desk, agent="look", thread_id="kept")
    await desk.finished(task_id)
    waiting = asyncio.create_task(view(desk, task_id, 60))
    deleting = asyncio.create_task(desk.client.delete(f"/agent/async/{task_id}"))
    looking = asyncio.create_task(statuses_until(desk, deleting, task_id))
    await asyncio.sleep(0.5)
    may_store.set()
    response = await asyncio.wait_for(deleting, 20)
    assert (response.status_code, response.json()["result"]) == (200, "already_finished")
    assert await looking <= {"running", "completed"}
    for task in (await waiting, await ended(desk, task_id)):
        assert (task["status"], task["result"]["outcome"]) == ("completed", "completed")
    assert desk.end_of(task_id).outcome == "completed"
    assert (await desk.client.get("/threads/kept?agent=look")).status_code == 200
    again = await desk.client.delete(f"/agent/async/{task_id}")
    assert again.json()["result"] == "already_finished"


async def test_reported_cancel_stands(desk: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a caller has read `cancelled`, the run stays cancelled, whatever its process reports."""
    may_store = ends_wait(monkeypatch)
    for name in ("api.tasks.STOP_S", "tasks.states.UNREPORTED_AFTER_S"):
        monkeypatch.setattr(f"app.{name}", STOP_S)
    task_id = await submit(desk, agent="look")
    await desk.finished(task_id)
    response = await desk.client.delete(f"/agent/async/{task_id}")
    assert (response.status_code, response.json()["result"]) == (202, "still_stopping")
    before = await ended(desk, task_id)
    assert before["status"] == "cancelled"
    may_store.set()
    engine: Any = desk.service.engine
    await until(lambda: not engine._worker.claims(), 20)
    await asyncio.sleep(1)  # in which it would be stored
    assert await view(desk, task_id) == before
    assert len([f for f in desk.facts_of(RunFinished) if f.run_id == task_id]) == 1


async def test_claimed_run_that_has_not_started_stops_at_once(
    desk: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claimed run that has not started stops at once and ends once."""
    loop, taken, may_begin = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    begin = Worker._start

    def later(worker: Worker, *arguments: Any) -> Any:
        loop.call_soon_threadsafe(taken.set)
        asyncio.run_coroutine_threadsafe(may_begin.wait(), loop).result(20)
        return begin(worker, *arguments)

    monkeypatch.setattr(Worker, "_start", later)
    task_id = await submit(desk, agent="look")
    await came_true(taken.is_set, "a worker took the run")
    response = await desk.client.delete(f"/agent/async/{task_id}")
    assert (response.status_code, response.json()["result"]) == (200, "cancelled")
    may_begin.set()
    engine: Any = desk.service.engine
    await until(lambda: not engine._worker.claims(), 20)
    task = await ended(desk, task_id)
    assert (task["status"], task["attempts"], task["started_at"]) == ("cancelled", 0, None)
    await desk.finished(task_id)
    assert desk.end_of(task_id).outcome == "cancelled"


async def test_cancel_found_by_the_fence_first(desk: Served) -> None:
    """If the fence finds the cancellation first, the run is cancelled, not lost."""
    for _ in range(3):
        task_id = await submit(desk, agent="look", question="one")
        await until(partial(has_begun, desk, task_id), 20)
        await desk.service.tasks.cancel(task_id)  # as from another process
        task = await ended(desk, task_id)
        end = desk.end_of(task_id)
        assert task["status"] == end.outcome
    assert not desk.facts_of(RunHandedOver)


async def test_cancel_by_another_process_during_a_tool(desk: Served) -> None:
    """The run stops, and the last word of its log is the caller's."""
    task_id = (await post(desk, agent="nap")).json()["task_id"]
    await desk.executing(task_id)
    await desk.service.tasks.cancel(task_id)
    assert (await ended(desk, task_id))["status"] == "cancelled"
    await desk.not_executing(task_id)
    assert desk.end_of(task_id).outcome == "cancelled"


async def test_noted_end_of_a_dead_process_can_be_cancelled(
    desk: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end never happened: the next attempt of the run can be cancelled."""
    engine: Any = desk.service.engine
    begin = Worker._start

    def after_another(worker: Worker, claim: Claim, stored: Any) -> Any:
        noted = {OUTCOME: "completed"}  # as by a process of a former version
        engine._records._client.update_workflow_attributes(claim.task_id, noted, merge=True)
        return begin(worker, claim, stored)

    monkeypatch.setattr(Worker, "_start", after_another)
    task_id = await submit(desk, agent="nap")
    await desk.executing(task_id)
    response = await desk.client.delete(f"/agent/async/{task_id}")
    assert (response.status_code, response.json()["result"]) == (200, "cancelled")
    assert (await ended(desk, task_id))["status"] == "cancelled"


@pytest.mark.parametrize("place", [(SystemDatabase, "get_workflow_statuses"), (Worker, "_start")])
async def test_taken_over_run_that_has_not_started_stops_at_once(
    desk: Served, monkeypatch: pytest.MonkeyPatch, place: tuple[type, str]
) -> None:
    """So does a run of a dead process that another has claimed and not started."""
    loop, taken, may_begin = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    goes_on = getattr(*place)
    engine: Any = desk.service.engine
    task_id = new_id("look", place[1])

    def later(*arguments: Any) -> Any:
        started = {STARTED: time.time(), ATTEMPTS: 1}  # as by the one that died
        engine._records._client.update_workflow_attributes(task_id, started, merge=True)
        loop.call_soon_threadsafe(taken.set)
        asyncio.run_coroutine_threadsafe(may_begin.wait(), loop).result(20)
        return goes_on(*arguments)

    monkeypatch.setattr(*place, later)
    monkeypatch.setattr(Recovery, "run", lambda _: None)  # which sees it if it takes long
    assert (await post(desk, agent="look", key=place[1])).is_success
    await came_true(taken.is_set, "a worker took the run")
    response = await desk.client.delete(f"/agent/async/{task_id}")
    assert (response.status_code, response.json()["result"]) == (200, "cancelled")
    may_begin.set()
    await desk.finished(task_id)
    await asyncio.sleep(1)  # in which another end would come
    assert desk.end_of(task_id).outcome == "cancelled"


async def test_cancel_while_a_run_is_requeued(
    desk: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is cancelled while it is requeued ends once."""
    loop, stopped, may_go = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    hand_over = Claim.hand_over

    def later(claim: Claim) -> bool:
        loop.call_soon_threadsafe(stopped.set)
        asyncio.run_coroutine_threadsafe(may_go.wait(), loop).result(20)
        return hand_over(claim)

    monkeypatch.setattr(Claim, "hand_over", later)
    task_id = await submit(desk, agent="nap")
    await desk.executing(task_id)
    desk.service.runner.stop(desk.service.runner.in_flight[task_id], HandedOver())
    await came_true(stopped.is_set, "the attempt stopped")
    deleting = asyncio.create_task(desk.client.delete(f"/agent/async/{task_id}"))
    await until_cancelled(desk, task_id)
    may_go.set()
    response = await asyncio.wait_for(deleting, 20)
    assert (response.status_code, response.json()["result"]) == (200, "cancelled")
    await desk.finished(task_id)
    ends = [f.outcome for f in desk.facts_of(RunFinished) if f.run_id == task_id]
    assert ends == ["cancelled"]


async def test_cancel_of_an_orphaned_run(desk: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that its process owns but does not execute has stopped, and ends once."""
    engine: Any = desk.service.engine
    begin = Worker._start

    def falls(worker: Worker, *arguments: Any) -> Any:
        begin(worker, *arguments)
        raise sa.exc.OperationalError("select", {}, OSError())

    monkeypatch.setattr(Worker, "_start", falls)
    task_id = await submit(desk, agent="look")
    [recovery] = [job for job in engine._supervisor._jobs if isinstance(job, Recovery)]
    orphans = recovery._orphans
    await until(lambda: task_id in {i for i, _ in orphans.last}, 20)
    response = await desk.client.delete(f"/agent/async/{task_id}")
    assert (response.status_code, response.json()["result"]) == (200, "cancelled")
    await desk.finished(task_id)
    assert desk.end_of(task_id).outcome == "cancelled"


async def test_second_cancel_waits_for_the_first(
    desk: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second caller waits for the result as the first does: an executing run is not over."""
    may_record, report_stop = asyncio.Event(), Background._report_stop

    async def later(background: Background, *arguments: Any) -> None:
        await may_record.wait()
        await report_stop(background, *arguments)

    monkeypatch.setattr(Background, "_report_stop", later)
    task_id = await submit(desk, agent="nap")
    await desk.executing(task_id)
    first = asyncio.create_task(desk.client.delete(f"/agent/async/{task_id}"))
    await until_cancelled(desk, task_id)
    second = asyncio.create_task(desk.client.delete(f"/agent/async/{task_id}"))
    await asyncio.sleep(0.5)
    assert (await view(desk, task_id))["status"] == "running"
    assert not second.done()
    may_record.set()
    for response in (await first, await second):
        assert (response.status_code, response.json()["result"]) == (200, "cancelled")
    third = await desk.client.delete(f"/agent/async/{task_id}")
    assert third.json()["result"] == "already_finished"


async def test_cancel_while_the_store_goes_away(
    desk: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a run without a worker is emitted when the store is back."""
    engine: Any = desk.service.engine
    record, asked = engine.record, list[str]()

    async def away_at_first(run_id: str) -> Any:
        asked.append(run_id)
        if len(asked) < 3:
            raise StoreUnavailable
        return await record(run_id)

    def never(worker: Worker, *_: Any) -> Any:
        raise HandedOver

    monkeypatch.setattr(engine, "record", away_at_first)
    monkeypatch.setattr(Worker, "_start", never)
    task_id = await submit(desk, agent="look")
    response = await desk.client.delete(f"/agent/async/{task_id}")
    assert (response.status_code, response.json()["result"]) == (200, "cancelled")
    await desk.finished(task_id)
    assert desk.end_of(task_id).outcome == "cancelled"


async def until_cancelled(desk: Served, task_id: str) -> None:
    """Wait until the store has the order, which no process has answered."""
    engine: Any = desk.service.engine
    queries = Queries(engine._tables, engine._store.calls)
    until_s = time.monotonic() + 20
    while state_of(await engine._store.call(queries.row, task_id)) not in STOPPING:
        assert time.monotonic() < until_s
        await asyncio.sleep(0.02)
