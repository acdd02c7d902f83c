"""The journal outlives its store's outages: it loses nothing, and every wait has a bound."""

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest
import sqlalchemy as sa

from app.runs.deadline import Current, current
from app.runs.errors import StoreUnavailable
from app.tasks import store
from app.tasks.batches import BatchWriter
from tests.parts.polling import until
from tests.parts.postgres import Shared
from tests.tasks.background import LONG_S, ON_FILE
from tests.tasks.journal_desk import Desk, opened, prepare

RUNS = 16


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prepare(tmp_path_factory.mktemp("journal"))


@pytest.fixture
def desk(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(store, "_WORKER_BUSY_MS", 50)
    with opened(url) as desk:
        yield desk


@contextmanager
def outage(desk: Desk) -> Iterator[None]:
    """The store is away: its server is stopped, or another program has locked its file."""
    if Shared.server is not None:
        Shared.server.stop()
        try:
            yield
        finally:
            Shared.server.start()
        return
    assert desk.store.path is not None
    with closing(sqlite3.connect(desk.store.path, isolation_level=None)) as other:
        other.execute("begin immediate")
        yield
        other.execute("rollback")


def test_rows_of_an_outage_are_stored_after_it(desk: Desk) -> None:
    """Rows that were added during an outage are stored once it is over, each once."""
    claims = [desk.claim() for _ in range(RUNS)]
    desk.journal.start()
    desk.flush(claims[0])  # it has its connection
    with outage(desk):
        for claim in claims:
            desk.add(claim, 0, "first")
            desk.add(claim, 1, "second")
        flushing = [desk.journal.flushing(claim) for claim in claims]
        with pytest.raises(TimeoutError):
            flushing[0].result(1.0)  # it has tried more than once
    for each in flushing:
        each.result(LONG_S)
    assert [desk.stored(claim) for claim in claims] == [["first", "second"]] * RUNS


@pytest.mark.skipif(ON_FILE, reason="a file has no server process")
def test_connection_that_was_ended_is_replaced(desk: Desk) -> None:
    """The server ends the connection, idle or within a transaction: nothing is lost."""
    claim, other = desk.claim(), desk.claim()
    desk.journal.start()
    desk.flush(claim)
    _end_connections(desk)
    desk.add(claim, 0, "idle")
    desk.flush(claim)
    gate = desk.hold()
    desk.add(other, 0, "waits")
    _end_connections(desk)
    gate.open()
    desk.flush(other)
    assert (desk.stored(claim), desk.stored(other)) == (["idle"], ["waits"])


def _end_connections(desk: Desk) -> None:
    ending = (
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    url = desk.store.url.render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(ending)


def test_run_that_the_store_does_not_take_delays_no_other(desk: Desk) -> None:
    """One run's write fails again and again on a store that works: the other runs are stored."""
    stuck, others = desk.claim(), [desk.claim() for _ in range(3)]
    refuses = True

    def fails(connection: sa.Connection) -> None:
        if refuses:
            raise sa.exc.OperationalError("insert", {}, Exception("no reason known"))

    desk.journal.start()
    desk.journal.add(stuck, fails)
    desk.add(stuck, 0, "later")
    stored_later = desk.journal.flushing(stuck)
    for claim in others:
        desk.add(claim, 0, "now")
        desk.flush(claim)
    assert not stored_later.done()
    refuses = False
    stored_later.result(LONG_S)
    assert [desk.stored(claim) for claim in (stuck, *others)] == [["later"], *[["now"]] * 3]


def test_deadline_bounds_a_wait(desk: Desk) -> None:
    """During an outage a run waits until its deadline, and not longer."""
    claim = desk.claim()
    desk.journal.start()
    desk.flush(claim)
    token = current.set(Current(claim.task_id, time.monotonic() + 0.2))
    try:
        with outage(desk):
            desk.add(claim, 0, "row")
            with pytest.raises(StoreUnavailable):
                asyncio.run(desk.journal.flushed(claim))
    finally:
        current.reset(token)
    desk.flush(claim)
    assert desk.stored(claim) == ["row"]  # it is not lost


def test_cancelled_waiter_harms_nobody(desk: Desk) -> None:
    """A run that stops waiting leaves its rows, and the others wait on."""
    claim, other = desk.claim(), desk.claim()
    desk.journal.start()
    gate = desk.hold()
    desk.add(claim, 0, "row")

    async def leave() -> None:
        leaving = asyncio.create_task(desk.journal.flushed(claim))
        staying = asyncio.create_task(desk.journal.flushed(other))
        await asyncio.sleep(0)
        leaving.cancel()
        gate.open()
        await staying

    asyncio.run(leave())
    assert desk.stored(claim) == ["row"]


def test_close_during_an_outage_has_a_bound(desk: Desk) -> None:
    """`close` gives up after its timeout, and reports what is not written to those who wait."""
    claim = desk.claim()
    desk.journal.start()
    desk.flush(claim)
    with outage(desk):
        desk.add(claim, 0, "row")
        waiting = desk.journal.flushing(claim)
        desk.journal.close(0.2)
        with pytest.raises(StoreUnavailable):
            waiting.result(0)
    assert desk.journal.age_s() == 0.0


def test_age_shows_a_delay(desk: Desk) -> None:
    """The age of the oldest entry grows while nothing is written, and is 0 afterwards."""
    claim = desk.claim()
    assert desk.journal.age_s() == 0.0
    desk.journal.start()
    gate = desk.hold()
    desk.add(claim, 0, "row")
    first = desk.journal.age_s()
    until(lambda: desk.journal.age_s() > first > 0.0, "no entry has become older")
    gate.open()
    desk.flush(claim)
    assert desk.journal.age_s() == 0.0


def test_thread_that_fails_informs_its_waiters(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the journal's thread ends by an error, nobody waits for it."""
    claim = desk.claim()

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(BatchWriter, "write", fail)
    desk.journal.start()
    with pytest.raises(StoreUnavailable):
        desk.flush(claim)
    with pytest.raises(StoreUnavailable):
        desk.flush(claim)
    assert [type(fault) for fault in desk.faults] == [RuntimeError]
    desk.faults.clear()
