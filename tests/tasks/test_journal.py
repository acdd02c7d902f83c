"""The journal writes what all runs add, each for its valid claim only, and loses nothing."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from app.runs.errors import Cancelled, HandedOver, NotStorable, RunError, StoreUnavailable
from app.tasks import rows
from app.tasks.backlog import BATCH_BYTES, RUN_BYTES
from app.tasks.queries import Queries
from tests.tasks.background import LONG_S, ON_FILE
from tests.tasks.journal_desk import OTHER, Claimed, Desk, opened, prepare

RUNS = 16


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prepare(tmp_path_factory.mktemp("journal"))


@pytest.fixture
def desk(url: str) -> Iterator[Desk]:
    with opened(url) as desk:
        yield desk


def test_rows_are_stored_in_their_order(desk: Desk) -> None:
    """After a flush every row is stored, in the order in which it was added."""
    claim = desk.claim()
    desk.journal.start()
    for number in range(20):
        desk.add(claim, number, f"row {number}")
    desk.flush(claim)
    assert desk.stored(claim) == [f"row {number}" for number in range(20)]


def test_loop_waits_for_a_flush(desk: Desk) -> None:
    """`flushed` returns on the loop once the rows are stored."""
    claim = desk.claim()
    desk.journal.start()
    desk.add(claim, 0, "row")
    asyncio.run(desk.journal.flushed(claim))
    assert desk.stored(claim) == ["row"]


def test_flush_without_rows_confirms_the_claim(desk: Desk) -> None:
    """A flush with nothing to write checks the claim, without a lock."""
    claim, lost = desk.claim(), desk.claim()
    desk.take_over(lost)
    desk.journal.start()
    desk.flush(claim)
    with pytest.raises(HandedOver):
        desk.flush(lost)


def test_one_transaction_serves_many_runs(desk: Desk) -> None:
    """What 16 runs add during a transaction is written by the next one."""
    claims = [desk.claim() for _ in range(RUNS)]
    desk.journal.start()
    gate = desk.hold()
    for claim in claims:
        desk.add(claim, 0, "row")
    flushing = [desk.journal.flushing(claim) for claim in claims]
    gate.open()
    for each in flushing:
        each.result(LONG_S)
    assert desk.commits == 2
    assert [desk.stored(claim) for claim in claims] == [["row"]] * RUNS


def test_lost_claim_is_refused_alone(desk: Desk) -> None:
    """A claim that has lost its run writes nothing. The others of its batch do."""
    lost, claim = desk.claim(), desk.claim()
    for each in (lost, claim):
        desk.add(each, 0, "row")
    refused, flushed = desk.journal.flushing(lost), desk.journal.flushing(claim)
    desk.take_over(lost)
    desk.journal.start()
    flushed.result(LONG_S)
    with pytest.raises(HandedOver):
        refused.result(LONG_S)
    assert (desk.stored(lost), desk.stored(claim)) == ([], ["row"])
    assert desk.commits == 1


def test_earlier_claim_of_the_same_run_is_refused(desk: Desk) -> None:
    """A run's former claim writes nothing, though the same process has claimed it again."""
    claim = desk.claim()
    former = Claimed(claim.task_id)
    desk.add(former, 0, "former")
    desk.add(claim, 0, "present")
    refused = desk.journal.flushing(former)
    desk.journal.start()
    desk.flush(claim)
    with pytest.raises(HandedOver):
        refused.result(LONG_S)
    assert desk.stored(claim) == ["present"]


@pytest.mark.parametrize(
    ("attributes", "process", "error"),
    [
        ({}, None, Cancelled),
        ({rows.STUCK: False}, None, HandedOver),
        ({}, OTHER, HandedOver),
    ],
    ids=["cancelled", "cancelled and reported", "cancelled elsewhere"],
)
def test_cancellation_is_told_from_a_takeover(
    desk: Desk, attributes: dict[str, Any], process: str | None, error: type[RunError]
) -> None:
    """A cancelled run raises Cancelled if this process still has to report its end."""
    claim = desk.claim()
    desk.cancel(claim, **attributes)
    if process is not None:
        desk.change(claim, executor_id=process)
    desk.add(claim, 0, "row")
    desk.journal.start()
    with pytest.raises(error):
        desk.flush(claim)
    assert desk.stored(claim) == []


def test_owners_do_not_change_during_a_batch(desk: Desk) -> None:
    """While a transaction is written, no process takes one of its runs over."""
    claim = desk.claim()
    refusals: list[str] = []

    def try_to_take_over(_: sa.Connection) -> None:
        limit = "PRAGMA busy_timeout=50" if ON_FILE else "set local lock_timeout = 50"
        with desk.store.calls.connect() as other:
            other.exec_driver_sql(limit)
            try:
                other.execute(sa.update(desk.tables.runs).values(executor_id=OTHER))
            except sa.exc.OperationalError as refused:
                refusals.append(str(refused))
            other.rollback()
            other.invalidate()

    desk.journal.add(claim, try_to_take_over)
    desk.journal.start()
    desk.flush(claim)
    assert len(refusals) == 1
    assert "lock" in refusals[0]


@pytest.mark.parametrize("content", ["constraint", "text"])
def test_refused_row_fails_its_own_run(desk: Desk, content: str) -> None:
    """The run of a refused row fails. Others of the batch, and its earlier rows, are stored."""
    claim, broken = desk.claim(), desk.claim()
    desk.add(broken, 0, "before")
    if content == "constraint":
        desk.journal.add(broken, desk.refused(broken))
    else:
        desk.journal.add(broken, desk.row(broken, 1, value="\udcaf"))  # half a character
    desk.add(broken, 2, "after")
    desk.add(claim, 0, "row")
    failing, flushing = desk.journal.flushing(broken), desk.journal.flushing(claim)
    desk.journal.start()
    flushing.result(LONG_S)
    with pytest.raises(NotStorable):
        failing.result(LONG_S)
    assert (desk.stored(broken), desk.stored(claim)) == (["before"], ["row"])


def test_refusal_waits_for_a_flush(desk: Desk) -> None:
    """The next flush reports a refused row. The claim may write again after that."""
    claim, other = desk.claim(), desk.claim()
    desk.journal.add(claim, desk.refused(claim))
    desk.journal.start()
    desk.flush(other)
    with pytest.raises(NotStorable):
        desk.add(claim, 0, "too early").result(LONG_S)
    with pytest.raises(NotStorable):
        desk.flush(claim)
    desk.add(claim, 0, "again")
    desk.flush(claim)
    assert desk.stored(claim) == ["again"]


def test_deleted_claim_is_unknown(desk: Desk) -> None:
    """A refusal that nobody has asked for is deleted with its claim."""
    claim, other = desk.claim(), desk.claim()
    desk.journal.add(claim, desk.refused(claim))
    desk.journal.start()
    desk.flush(other)
    desk.journal.delete(claim)
    desk.flush(claim)


def test_write_may_be_a_function(desk: Desk) -> None:
    """A function writes by the driver's own connection, in the transaction of the batch."""
    claim, gives_up = desk.claim(), desk.claim()
    mark = "?" if ON_FILE else "%s"
    schema = "" if ON_FILE else "dbos."

    def by_driver(connection: sa.Connection) -> None:
        raw = connection.connection.driver_connection
        assert raw is not None
        text = f"update {schema}workflow_status set name = {mark} where workflow_uuid = {mark}"
        raw.execute(text, ("renamed", claim.task_id))

    def give_up(_: sa.Connection) -> None:
        raise HandedOver

    desk.journal.add(claim, by_driver)
    desk.journal.add(gives_up, give_up)
    refused = desk.journal.flushing(gives_up)
    desk.journal.start()
    desk.flush(claim)
    found = Queries(desk.tables, desk.store.calls).row(claim.task_id)
    assert found is not None
    assert found["name"] == "renamed"
    with pytest.raises(HandedOver):
        refused.result(LONG_S)


def test_hot_loop_waits_for_the_store(desk: Desk) -> None:
    """A run that adds 11 MB waits now and then, so little of it is unwritten at once."""
    claim, large = desk.claim(), "x" * 100_000
    desk.journal.start()
    gate = desk.hold()
    rooms = [desk.add(claim, number, large) for number in range(RUN_BYTES // len(large))]
    assert all(room.done() for room in rooms)
    blocked = desk.add(claim, len(rooms), large)
    assert not blocked.done()
    gate.open()
    blocked.result(LONG_S)
    for number in range(len(rooms) + 1, 110):
        desk.add(claim, number, large).result(LONG_S)
    desk.flush(claim)
    assert [len(text) for text in desk.stored(claim)] == [len(large)] * 110


def test_large_step_is_stored(desk: Desk) -> None:
    """A write that is larger than a batch may be is stored, and its run's order stays."""
    claim, large = desk.claim(), "x" * (BATCH_BYTES + 1)
    for number, text in enumerate(["before", large, "after"]):
        desk.add(claim, number, text)
    desk.journal.start()
    desk.flush(claim)
    assert desk.stored(claim) == ["before", large, "after"]
    assert desk.commits == 3


def test_close_writes_what_is_left(desk: Desk) -> None:
    """`close` returns once everything is stored, also what nobody waits for."""
    claims = [desk.claim() for _ in range(RUNS)]
    desk.journal.start()
    gate = desk.hold()
    for claim in claims:
        desk.add(claim, 0, "row")
    gate.open()
    desk.journal.close(LONG_S)
    assert [desk.stored(claim) for claim in claims] == [["row"]] * RUNS


def test_closed_journal_refuses(desk: Desk) -> None:
    """After `close` nothing can be added, and nobody waits."""
    claim = desk.claim()
    desk.journal.start()
    desk.journal.close(LONG_S)
    for future in (desk.add(claim, 0, "late"), desk.journal.flushing(claim)):
        with pytest.raises(StoreUnavailable):
            future.result(LONG_S)
    assert desk.stored(claim) == []
