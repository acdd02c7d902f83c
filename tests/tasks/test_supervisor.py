"""The supervisor takes over, ends or leaves alone the runs of dead processes."""

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
import sqlalchemy as sa
from dbos import DBOSClient, DBOSPortableJSONSerializer

from app.runs.tasks import TaskStatus
from app.tasks import rows
from app.tasks.ownership import Owned
from app.tasks.store import Store
from app.tasks.supervisor import MAX_TAKEOVERS_WITHOUT_PROGRESS, Hooks, Supervisor
from app.tasks.tables import Tables
from app.tasks.worker import Worker
from tests.service import served
from tests.tasks.background import LONG_S, quick, url_in


class Desk:
    """A supervisor on a store, what it reported, and the runs of dead processes."""

    def __init__(self, url: str) -> None:
        self.reported: list[tuple[str, str]] = []
        self.faults: list[BaseException] = []
        self.orders: list[tuple[Sequence[str], Future[None]]] = []
        self.store = Store(url)
        self.tables = Tables(is_file=self.store.is_file)
        self.client = DBOSClient(
            system_database_engine=self.store.calls, serializer=DBOSPortableJSONSerializer()
        )
        work: Any = None  # there is none: this process executes nothing
        self.worker = Worker(self.store, self.tables, work, work, self.faults.append, work)
        hooks = Hooks(
            recovered=lambda task_id, agent: self.reported.append(("recovered", task_id)),
            ended_without_worker=lambda task_id, error: self.reported.append((error.code, task_id)),
            delete_steps=self.delete_steps,
            failed=self.faults.append,
        )
        parts = (self.store, self.client, self.tables, "me", hooks, self.worker)
        self.supervisor = Supervisor(*parts, keep_s=LONG_S * 1000, works=False)

    def delete_steps(self, ids: Sequence[str]) -> "Future[None]":
        order: Future[None] = Future()
        self.orders.append((sorted(ids), order))
        return order

    def submit(self) -> str:
        """A queued run of an agent that no process serves."""
        task_id = str(uuid.uuid4())
        attributes = {rows.CREATED: time.time()}
        self.client.enqueue(
            {
                "workflow_name": "a",
                "queue_name": "a",
                "workflow_id": task_id,
                "attributes": attributes,
            },
            {},
        )
        return task_id

    def taken(self, task_id: str, iterations: int = 0) -> dict[str, Any]:
        """A process claims the run, stores its progress and dies: the run as it was then."""
        run = self.tables.runs
        claimed = {"status": "PENDING", "executor_id": "gone", "owner_xid": uuid.uuid4().hex}
        before = self.tables.log(self.store.calls, task_id, 0)
        row = {
            "workflow_uuid": task_id,
            "key": rows.LOG,
            "offset": len(before),
            "value": f'{{"events": [], "progress": {{"iterations": {iterations}}}}}',
            "function_id": 0,
        }
        with self.store.calls.begin() as connection:
            waiting = sa.and_(run.c.workflow_uuid == task_id, run.c.status == "ENQUEUED")
            assert connection.execute(sa.update(run).where(waiting).values(claimed)).rowcount == 1
            connection.execute(self.tables.insert_once(row))
        return self.row(task_id)

    def row(self, task_id: str) -> dict[str, Any]:
        found = self.tables.row(self.store.calls, task_id)
        assert found is not None
        return dict(found)

    def status(self, task_id: str) -> TaskStatus:
        return rows.task(self.row(task_id)).status


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store on which a service was: it has every table."""
    url = url_in(tmp_path_factory.mktemp("supervisor"))

    async def once() -> None:
        async with served({"quick": quick()}, store_url=url):
            pass

    asyncio.run(once())
    return url


@pytest.fixture
def desk(url: str) -> Iterator[Desk]:
    desk = Desk(url)
    yield desk
    desk.supervisor.stop()
    desk.client.destroy()
    desk.store.close()


def test_run_of_a_dead_process_is_requeued(desk: Desk) -> None:
    """The run is requeued, and its takeover is counted."""
    task_id = desk.submit()
    desk.supervisor.recover(desk.taken(task_id))
    assert desk.reported == [("recovered", task_id)]
    assert desk.status(task_id) is TaskStatus.PENDING
    assert desk.row(task_id)["attributes"][rows.IN_VAIN] == 1


@pytest.mark.parametrize("takeovers", [0, MAX_TAKEOVERS_WITHOUT_PROGRESS])
@pytest.mark.parametrize("meanwhile", ["cancelled", "taken"])
def test_run_changed_since_it_was_read_is_left_alone(
    desk: Desk, takeovers: int, meanwhile: str
) -> None:
    """A run that was cancelled or claimed since its row was read is neither requeued nor lost."""
    task_id = desk.submit()
    for _ in range(takeovers):
        desk.supervisor.recover(desk.taken(task_id))
    seen = desk.taken(task_id)
    desk.reported.clear()
    if meanwhile == "cancelled":
        desk.client.cancel_workflow(task_id)
    else:
        desk.supervisor.recover(seen)
        if takeovers == 0:
            desk.reported.clear()
            desk.taken(task_id)
    before = desk.row(task_id)
    reported = list(desk.reported)
    desk.supervisor.recover(seen)
    assert desk.row(task_id) == before
    assert desk.reported == reported


def test_ten_takeovers_without_progress_end_the_run(desk: Desk) -> None:
    """After ten takeovers without progress the run ends as lost."""
    task_id = desk.submit()
    for _ in range(MAX_TAKEOVERS_WITHOUT_PROGRESS):
        desk.supervisor.recover(desk.taken(task_id))
    assert desk.reported == [("recovered", task_id)] * MAX_TAKEOVERS_WITHOUT_PROGRESS
    desk.supervisor.recover(desk.taken(task_id))
    assert desk.reported[-1] == ("worker_lost", task_id)
    assert desk.status(task_id) is TaskStatus.FAILED


def test_progress_resets_the_takeovers(desk: Desk) -> None:
    """A run that makes progress gets all ten takeovers again."""
    task_id = desk.submit()
    for iterations in range(2 * MAX_TAKEOVERS_WITHOUT_PROGRESS):
        desk.supervisor.recover(desk.taken(task_id, iterations))
    for _ in range(MAX_TAKEOVERS_WITHOUT_PROGRESS - 1):
        desk.supervisor.recover(desk.taken(task_id, 3))
    assert {what for what, _ in desk.reported} == {"recovered"}
    desk.supervisor.recover(desk.taken(task_id, 3))
    assert desk.reported[-1] == ("worker_lost", task_id)


def eventually(claim: Callable[[], bool]) -> None:
    """Wait until it is so; fails when it takes very long."""
    end = time.monotonic() + LONG_S
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_failed_deletion_of_steps_is_retried(desk: Desk) -> None:
    """Steps that could not be deleted are tried again; the failure is logged once."""
    ended = desk.submit()
    desk.client.cancel_workflow(ended)
    desk.worker.recently_executed.add(ended)
    desk.supervisor.start()
    for number, wrong in enumerate((OSError("full"), OSError("still full"), None)):
        eventually(lambda number=number: len(desk.orders) > number)  # type: ignore[misc]
        ids, order = desk.orders[number]
        assert ids == [ended]
        assert ended in desk.worker.recently_executed
        if wrong is None:
            order.set_result(None)
        else:
            order.set_exception(wrong)
    eventually(
        lambda: not desk.worker.recently_executed
    )  # its own thread may be the one that is notified
    assert [str(fault) for fault in desk.faults] == ["full"]


def test_cancelled_run_of_a_killed_process_ends_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end is emitted however long the process hung, unless the process emitted it."""
    monkeypatch.setattr("app.tasks.supervisor._ORPHAN_S", 0.1)
    killed = threading.Event()
    probe: Any = desk.supervisor._probe
    monkeypatch.setattr(probe, "acquire", lambda _: killed.is_set())
    monkeypatch.setattr(probe, "release", lambda _: None)
    hung, spoke = desk.submit(), desk.submit()
    for task_id in (hung, spoke):
        claim = desk.taken(task_id)["owner_xid"]
        Owned(desk.store, desk.tables, task_id, claim, "gone").merge_attributes(
            {rows.STARTED_TOKEN: claim}
        )
        with desk.store.calls.begin() as connection:
            connection.execute(desk.tables.cancelling(task_id, time.time()))
        desk.supervisor.watch_cancellation(task_id, "gone")
    Owned(desk.store, desk.tables, spoke, None, "gone").record_stop()
    desk.supervisor.start()
    time.sleep(1.5)
    assert desk.reported == []
    killed.set()
    end = time.monotonic() + LONG_S
    while not desk.reported:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert desk.reported == [("cancelled", hung)]


@pytest.mark.parametrize("has_result", [True, False])
def test_noted_end_without_a_result_can_be_cancelled(desk: Desk, has_result: bool) -> None:
    """Once requeued, the run can be cancelled unless its result was stored: then it has ended."""
    task_id = desk.submit()
    claim = desk.taken(task_id)["owner_xid"]
    Owned(desk.store, desk.tables, task_id, claim, "gone").end({rows.OUTCOME: "completed"})
    if has_result:
        step = {"workflow_uuid": task_id, "function_id": 1, "function_name": "agent"}
        with desk.store.calls.begin() as connection:
            connection.execute(sa.insert(desk.tables.results).values(step))
    desk.supervisor.recover(desk.row(task_id))
    with desk.store.calls.begin() as connection:
        found = connection.execute(desk.tables.cancelling(task_id, time.time())).one_or_none()
    assert (found is None) is has_result
    assert desk.status(task_id) is (TaskStatus.PENDING if has_result else TaskStatus.CANCELLED)
