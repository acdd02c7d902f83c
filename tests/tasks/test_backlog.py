"""What a transaction of the journal takes, and what a run may add before it has to wait."""

from concurrent.futures import Future

import pytest

from app.runs.errors import HandedOver, NotStorable, StoreUnavailable
from app.tasks.backlog import BATCH_BYTES, BATCH_WRITES, RUN_BYTES, Backlog, Batch, Claim
from tests.tasks.journal_desk import Claimed

A, B = Claimed("a"), Claimed("b")


def add(backlog: Backlog, claim: Claim, size_bytes: int = 1, now: float = 0.0) -> "Future[None]":
    return backlog.add(claim, lambda _: None, size_bytes, now)


def sizes(batch: Batch) -> dict[str, list[int]]:
    """The sizes of the writes of a batch, by run."""
    return {
        claim.task_id: [entry.size_bytes for entry in entries if entry.write is not None]
        for claim, entries in batch.items()
    }


def written(backlog: Backlog) -> dict[str, list[int]]:
    """Take a batch and settle it, as after a commit."""
    batch = backlog.take()
    for claim in batch:
        backlog.settle(claim, None)
    return sizes(batch)


def test_batch_has_a_maximum_of_writes() -> None:
    """A batch takes so many writes; the next one takes the rest."""
    backlog = Backlog()
    for _ in range(BATCH_WRITES + 1):
        add(backlog, A)
    assert len(written(backlog)["a"]) == BATCH_WRITES
    assert written(backlog) == {"a": [1]}
    assert not backlog


def test_batch_has_a_maximum_of_bytes() -> None:
    """A write that does not fit waits for the next batch, and so does all after it."""
    backlog, half = Backlog(), BATCH_BYTES // 2
    for size in (half, half + 1, 1):
        add(backlog, A, size)
    assert written(backlog) == {"a": [half]}
    assert written(backlog) == {"a": [half + 1, 1]}


def test_large_write_has_a_batch_of_its_own() -> None:
    """A large write delays no other run: it goes alone, after those that were first."""
    backlog, large = Backlog(), BATCH_BYTES + 1
    add(backlog, B)
    add(backlog, A, large)
    add(backlog, A)
    add(backlog, B)
    assert written(backlog) == {"b": [1, 1]}
    add(backlog, B)
    assert written(backlog) == {"a": [large]}
    assert written(backlog) == {"b": [1], "a": [1]}


def test_claims_take_turns() -> None:
    """A run that adds without end does not keep another one out."""
    backlog = Backlog()
    for _ in range(2 * BATCH_WRITES):
        add(backlog, A)
    add(backlog, B)
    assert list(written(backlog)) == ["a"]
    assert list(written(backlog)) == ["b", "a"]


def test_waiter_follows_its_writes() -> None:
    """A waiter is done with the batch that has the last write before it."""
    backlog = Backlog()
    for _ in range(BATCH_WRITES + 1):
        add(backlog, A)
    waiter = backlog.wait(A, 0.0)
    written(backlog)
    assert not waiter.done()
    written(backlog)
    assert waiter.result(0) is None


def test_run_with_many_bytes_has_to_wait() -> None:
    """Above its bound a run waits until enough of it is written; another run does not."""
    backlog = Backlog()
    assert add(backlog, A, RUN_BYTES).done()
    blocked = add(backlog, A)
    assert not blocked.done()
    assert add(backlog, B).done()
    while not blocked.done():
        assert written(backlog)
    assert blocked.result(0) is None


def test_bytes_of_a_lost_claim_count_no_more() -> None:
    """A run that waits to add more hears that its claim is lost."""
    backlog = Backlog()
    add(backlog, A, RUN_BYTES)
    blocked = add(backlog, A)
    backlog.take()
    backlog.settle(A, HandedOver())
    with pytest.raises(HandedOver):
        blocked.result(0)


def test_nothing_is_written_after_a_refusal() -> None:
    """Later writes of a refused claim are dropped until a waiter has received the refusal."""
    backlog = Backlog()
    add(backlog, A)
    backlog.take()
    add(backlog, A, 2)
    waiter = backlog.wait(A, 0.0)
    add(backlog, A, 3)
    backlog.settle(A, NotStorable())
    with pytest.raises(NotStorable):
        waiter.result(0)
    assert written(backlog) == {"a": [3]}


def test_closed_backlog_informs_everybody() -> None:
    """At the end every waiter is informed: of the present batch, of later ones, of more room."""
    backlog = Backlog()
    first = backlog.wait(A, 0.0)
    backlog.take()
    add(backlog, B, RUN_BYTES)
    waiters = [first, backlog.wait(A, 0.0), add(backlog, B), backlog.wait(B, 0.0)]
    backlog.fail(StoreUnavailable())
    for waiter in waiters:
        with pytest.raises(StoreUnavailable):
            waiter.result(0)
    backlog.settle(A, None)  # the batch ends too late
    assert not backlog


def test_oldest_entry_may_be_in_the_present_batch() -> None:
    """The age counts from the oldest entry that is not settled."""
    backlog = Backlog()
    add(backlog, A, now=1.0)
    backlog.take()
    add(backlog, B, now=2.0)
    assert backlog.oldest() == 1.0
    backlog.settle(A, None)
    assert backlog.oldest() == 2.0
