"""The jobs of a process: they recover, end or leave alone the runs of dead processes."""

import asyncio
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from dbos import DBOSClient, DBOSPortableJSONSerializer

from app.runs.errors import HandedOver
from app.tasks import rows
from app.tasks.cancellations import HANGS_AFTER_S, Cancellations
from app.tasks.hooks import Hooks
from app.tasks.housekeeping import Housekeeping
from app.tasks.liveness import locks_of
from app.tasks.queries import Queries, Row
from app.tasks.recovery import MAX_TAKEOVERS_WITHOUT_PROGRESS, Recovery
from app.tasks.sightings import Sightings
from app.tasks.states import RunState, state_of
from app.tasks.store import Store
from app.tasks.supervisor import Supervisor
from app.tasks.tables import Tables
from app.tasks.transitions import Claim, Transitions
from tests.service import served
from tests.tasks.background import LONG_S, ON_FILE, quick, url_in
from tests.tasks.journal_desk import write_row


class Desk:
    """The jobs of a process on a store, what they reported, and the runs of dead processes."""

    def __init__(self, url: str) -> None:
        self.reported: list[tuple[str, str]] = []
        self.faults: list[BaseException] = []
        self.orders: list[tuple[Sequence[str], Future[None]]] = []
        self.store = Store(url)
        self.tables = Tables(is_file=self.store.is_file)
        self.queries = Queries(self.tables, self.store.calls)
        self.transitions = Transitions(self.store, self.tables)
        self.client = DBOSClient(
            system_database_engine=self.store.calls, serializer=DBOSPortableJSONSerializer()
        )
        hooks = Hooks(
            recovered=lambda task_id, agent: self.reported.append(("recovered", task_id)),
            ended_without_worker=lambda task_id, error: self.reported.append((error.code, task_id)),
            delete_steps=self.delete_steps,
            failed=self.faults.append,
        )
        self.probe = locks_of(self.store)
        about = (self.queries, self.transitions, "me", hooks, self.probe)
        nobody: Any = None  # this process executes nothing
        self.recovery = Recovery(*about, nobody, works=True)
        self.cancellations = Cancellations(*about)
        self.housekeeping = Housekeeping(
            self.queries, self.client, "me", hooks, keep_s=LONG_S * 1000
        )

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

    def claim(self, task_id: str) -> Claim:
        """The engine of another process claims the run."""
        run, token = self.tables.runs, uuid.uuid4().hex
        claimed = {"status": "PENDING", "executor_id": "gone", "owner_xid": token}
        queued = sa.and_(run.c.workflow_uuid == task_id, run.c.status == "ENQUEUED")
        with self.store.calls.begin() as connection:
            assert connection.execute(sa.update(run).where(queued).values(claimed)).rowcount == 1
        return Claim(self.store, self.tables, task_id, token, "gone")

    def taken(self, task_id: str, iterations: int = 0) -> Row:
        """A process starts the run, stores its progress and dies: the run as it was then."""
        claim = self.claim(task_id)
        claim.start(LONG_S)
        before = self.queries.log(task_id, 0)
        write_row(claim, len(before), {"events": [], "progress": {"iterations": iterations}})
        return self.row(task_id)

    def cancel(self, task_id: str) -> None:
        """A caller cancels the run."""
        cancelled = asyncio.run(self.store.call(self.transitions.cancel, task_id))
        assert cancelled is not None

    def recover(self, row: Row) -> None:
        """Requeue the run of a process that died."""
        self.recovery.recover(row, died=True)

    def row(self, task_id: str) -> Row:
        found = self.queries.row(task_id)
        assert found is not None
        return found

    def state(self, task_id: str) -> RunState:
        return state_of(self.row(task_id))


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
    desk.probe.close()
    desk.client.destroy()
    desk.store.close()


class Killed:
    """Locks of processes; those of the dead are free."""

    grace_s = 0.0

    def __init__(self) -> None:
        self.is_dead = False

    def acquire(self, _: str) -> bool:
        return self.is_dead

    def release(self, _: str) -> None:
        pass


def test_run_of_a_dead_process_is_requeued(desk: Desk) -> None:
    """The run is requeued, and its takeover is counted."""
    task_id = desk.submit()
    desk.recover(desk.taken(task_id))
    assert desk.reported == [("recovered", task_id)]
    assert desk.state(task_id) is RunState.QUEUED
    assert desk.row(task_id)["attributes"][rows.IN_VAIN] == 1


@pytest.mark.parametrize("takeovers", [0, MAX_TAKEOVERS_WITHOUT_PROGRESS])
@pytest.mark.parametrize("meanwhile", ["cancelled", "taken"])
def test_run_changed_since_it_was_read_is_left_alone(
    desk: Desk, takeovers: int, meanwhile: str
) -> None:
    """A run that was cancelled or claimed since its row was read is neither requeued nor lost."""
    task_id = desk.submit()
    for _ in range(takeovers):
        desk.recover(desk.taken(task_id))
    seen = desk.taken(task_id)
    desk.reported.clear()
    if meanwhile == "cancelled":
        desk.client.cancel_workflow(task_id)
    else:
        desk.recover(seen)
        if takeovers == 0:
            desk.reported.clear()
            desk.taken(task_id)
    before = dict(desk.row(task_id)) | {"now": None}
    reported = list(desk.reported)
    desk.recover(seen)
    assert dict(desk.row(task_id)) | {"now": None} == before
    assert desk.reported == reported


def test_ten_takeovers_without_progress_end_the_run(desk: Desk) -> None:
    """After ten takeovers without progress the run ends as lost."""
    task_id = desk.submit()
    for _ in range(MAX_TAKEOVERS_WITHOUT_PROGRESS):
        desk.recover(desk.taken(task_id))
    assert desk.reported == [("recovered", task_id)] * MAX_TAKEOVERS_WITHOUT_PROGRESS
    desk.recover(desk.taken(task_id))
    assert desk.reported[-1] == ("worker_lost", task_id)
    assert desk.state(task_id) is RunState.FAILED


def test_progress_resets_the_takeovers(desk: Desk) -> None:
    """A run that makes progress gets all ten takeovers again."""
    task_id = desk.submit()
    for iterations in range(2 * MAX_TAKEOVERS_WITHOUT_PROGRESS):
        desk.recover(desk.taken(task_id, iterations))
    for _ in range(MAX_TAKEOVERS_WITHOUT_PROGRESS - 1):
        desk.recover(desk.taken(task_id, 3))
    assert {what for what, _ in desk.reported} == {"recovered"}
    desk.recover(desk.taken(task_id, 3))
    assert desk.reported[-1] == ("worker_lost", task_id)


def test_run_that_has_not_started_killed_nobody(desk: Desk) -> None:
    """Takeovers of a claimed run that no process has started do not count."""
    task_id = desk.submit()
    for _ in range(MAX_TAKEOVERS_WITHOUT_PROGRESS + 1):
        desk.claim(task_id)
        desk.recover(desk.row(task_id))
    assert {what for what, _ in desk.reported} == {"recovered"}
    assert desk.state(task_id) is RunState.QUEUED


def test_takeover_from_a_living_process_does_not_count(desk: Desk) -> None:
    """A process that was taken for dead takes the count back, once, and only its own."""
    task_id = desk.submit()
    for _ in range(2 * MAX_TAKEOVERS_WITHOUT_PROGRESS):
        row = desk.taken(task_id)
        desk.recover(row)
        lost = Claim(desk.store, desk.tables, task_id, row["owner_xid"], "gone")
        with pytest.raises(HandedOver):
            write_row(lost, 0, {})
        assert (lost.hand_over(), lost.survived(), lost.survived()) == (False, True, False)
    assert desk.row(task_id)["attributes"][rows.IN_VAIN] == 0
    stale = Claim(desk.store, desk.tables, task_id, row["owner_xid"], "gone")
    desk.recover(desk.taken(task_id))
    assert not stale.survived()
    assert desk.row(task_id)["attributes"][rows.IN_VAIN] == 1


@pytest.mark.skipif(ON_FILE, reason="a file has one lock for all rows")
def test_locked_run_delays_no_other(desk: Desk) -> None:
    """A run whose row a hanging process has locked is left for the next round."""
    locked, other = desk.submit(), desk.submit()
    seen = [desk.taken(locked), desk.taken(other)]
    run = desk.tables.runs
    mine = sa.select(run.c.name).where(run.c.workflow_uuid == locked).with_for_update(read=True)
    with desk.store.worker.begin() as hangs:
        hangs.execute(mine)
        for row in seen:
            desk.recover(row)
        assert desk.reported == [("recovered", other)]
    desk.recover(seen[0])
    assert desk.reported[1:] == [("recovered", locked)]


def test_outcome_that_a_former_version_noted_does_not_outlive_its_process(desk: Desk) -> None:
    """It was noted before the result, which was never stored: the queued run can be cancelled."""
    task_id = desk.submit()
    desk.taken(task_id)
    desk.client.update_workflow_attributes(task_id, {rows.OUTCOME: "completed"}, merge=True)
    desk.recover(desk.row(task_id))
    desk.cancel(task_id)
    assert desk.state(task_id) is RunState.CANCELLED


def test_run_that_cannot_be_recovered_delays_no_other(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unreadable log, for instance, fails the recovery of its own run only."""
    broken, other = desk.submit(), desk.submit()
    seen = [desk.taken(broken), desk.taken(other)]
    reached = desk.queries.reached
    monkeypatch.setattr(
        desk.queries, "reached", lambda task_id: 1 / 0 if task_id == broken else reached(task_id)
    )
    for row in seen:
        desk.recovery._recover(row, died=True)
    assert [type(fault) for fault in desk.faults] == [ZeroDivisionError]
    assert desk.reported == [("recovered", other)]


def test_cancellation_is_watched_until_it_is_reported(
    desk: Desk, cancelled: tuple[str, str, Killed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is busy at that moment does not end the watch."""
    hung, _, locks = cancelled
    locks.is_dead = True
    report, busy = desk.transitions.report_stop_of, [True]

    def refuse(*of: Any) -> bool:
        if busy:
            busy.pop()
            raise sa.exc.OperationalError("update", {}, Exception("database is locked"))
        return report(*of)

    monkeypatch.setattr(desk.transitions, "report_stop_of", refuse)
    with pytest.raises(sa.exc.OperationalError):
        desk.cancellations.run()
    desk.cancellations.restart()
    desk.cancellations.run()
    assert desk.reported == [("cancelled", hung)]


def test_orphan_reports_only_its_own_claim(desk: Desk) -> None:
    """A run that this process claimed again, and that was cancelled then, has its own report."""
    task_id = desk.submit()
    first = desk.claim(task_id)
    first.start(LONG_S)
    assert first.hand_over()
    second = desk.claim(task_id)
    second.start(LONG_S)
    desk.cancel(task_id)
    assert not desk.transitions.report_stop_of(task_id, "gone", first.token)
    assert desk.state(task_id) is RunState.CANCELLING
    assert desk.transitions.report_stop_of(task_id, "gone", second.token)


def test_outage_does_not_age_orphans(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store was away no owner could end its run: the period of grace begins again."""
    now = [0.0]
    monkeypatch.setattr("app.tasks.sightings.time.monotonic", lambda: now[0])
    seen = Sightings[str]()
    assert seen.ages(["a"]) == {"a": 0.0}
    now[0] = 5.0
    assert seen.ages(["a", "b"]) == {"a": 5.0, "b": 0.0}
    seen.restart()
    assert seen.ages(["a"]) == {"a": 0.0}
    for sightings in (desk.recovery._orphans, desk.recovery._suspects, desk.recovery._late):
        sightings.ages([])
        monkeypatch.setattr(sightings, "_since", {"x": 0.0})
    desk.recovery.restart()
    assert not desk.recovery._orphans.last | desk.recovery._suspects.last | desk.recovery._late.last


def test_failed_deletion_of_steps_is_retried(desk: Desk) -> None:
    """Steps that could not be deleted are tried again; the failure is logged once."""
    ended = desk.submit()
    desk.client.cancel_workflow(ended)
    desk.housekeeping.add(ended)
    for number, wrong in enumerate((OSError("full"), OSError("still full"), None)):
        desk.housekeeping.run()
        assert len(desk.orders) == number + 1
        ids, order = desk.orders[number]
        assert ids == [ended]
        desk.housekeeping.run()  # the deletion goes on: there is no second one
        assert len(desk.orders) == number + 1
        assert ended in desk.housekeeping.left
        if wrong is None:
            order.set_result(None)
        else:
            order.set_exception(wrong)
    assert not desk.housekeeping.left
    assert [str(fault) for fault in desk.faults] == ["full"]


def test_steps_stay_until_the_run_has_ended(desk: Desk) -> None:
    """Steps of a live run stay; a process forgets those of a run that another has claimed."""
    queued, elsewhere = desk.submit(), desk.submit()
    desk.housekeeping.add(queued, elsewhere)
    desk.claim(elsewhere)
    desk.housekeeping.run()
    assert desk.orders == []
    assert elsewhere not in desk.housekeeping.left


@pytest.fixture
def cancelled(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, Killed]:
    """Two cancelled runs of a process: one that has not reported, and one that has."""
    hung, spoke = desk.submit(), desk.submit()
    for task_id in (hung, spoke):
        claim = desk.claim(task_id)
        claim.start(LONG_S)
        desk.cancel(task_id)
        desk.cancellations.watch(task_id, "gone")
    assert claim.report_stop()
    locks = Killed()
    monkeypatch.setattr(desk.cancellations, "_probe", locks)
    return hung, spoke, locks


def test_cancelled_run_of_a_killed_process_ends_once(
    desk: Desk, cancelled: tuple[str, str, Killed]
) -> None:
    """The end is emitted once the process is dead, unless the process emitted it."""
    hung, _, locks = cancelled
    desk.cancellations.run()
    assert desk.reported == []
    locks.is_dead = True
    desk.cancellations.run()
    desk.cancellations.run()
    assert desk.reported == [("cancelled", hung)]
    assert desk.state(hung) is RunState.CANCELLED


def test_cancelled_run_of_a_process_that_hangs_is_not_awaited_for_ever(
    desk: Desk, cancelled: tuple[str, str, Killed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch of a cancellation ends, whatever its owner does."""
    hung, _, _ = cancelled
    later = time.monotonic() + HANGS_AFTER_S + 1
    monkeypatch.setattr("app.tasks.cancellations.time.monotonic", lambda: later)
    desk.cancellations.run()
    assert desk.reported == [("cancelled", hung)]
    assert desk.cancellations._watched == {}


def test_job_that_fails_does_not_stop_the_others(desk: Desk) -> None:
    """An unexpected error of one job is reported; the other jobs go on."""
    done = threading.Event()

    class Broken:
        def run(self) -> None:
            raise RuntimeError

        def restart(self) -> None:
            pass

    class Works(Broken):
        def run(self) -> None:
            done.set()

    heartbeat: Any = Works()
    heartbeat.count = lambda: None
    supervisor = Supervisor(heartbeat, (Broken(), Works()), desk.faults.append)
    done.clear()
    supervisor.start()
    assert done.wait(LONG_S)
    supervisor.stop()
    assert {type(fault) for fault in desk.faults} == {RuntimeError}


def test_round_that_takes_long_restarts_the_periods(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that delays this process delays the others too: they may live and be silent."""
    monkeypatch.setattr("app.tasks.supervisor._STALE_S", 0.0)
    restarted = threading.Event()
    job: Any = SimpleNamespace(run=lambda: time.sleep(0.01), restart=restarted.set)
    heartbeat: Any = SimpleNamespace(run=job.run, restart=lambda: None, count=lambda: None)
    supervisor = Supervisor(heartbeat, (job,), desk.faults.append)
    supervisor.start()
    assert restarted.wait(LONG_S)
    supervisor.stop()
