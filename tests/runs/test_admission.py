"""Slots and the queue: which runs start, wait or are refused."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.runs.admission import Admission, Ticket
from app.runs.errors import Overloaded


def nothing() -> None:
    """A run that does nothing when it starts."""


def busy(admission: Admission, service_s: float) -> None:
    """Let the admission learn a service time."""
    ticket = admission.enter(nothing, 100.0)
    assert ticket.admitted_at is not None
    ticket.admitted_at -= service_s
    admission.leave(ticket)


def test_free_slot_starts_a_run_at_once() -> None:
    """A run that finds a slot starts before enter returns."""
    started: list[int] = []
    admission = Admission(slots=1, queue=0)
    ticket = admission.enter(lambda: started.append(1), 10.0)
    assert started == [1]
    assert ticket.admitted_at is not None
    assert (admission.running, admission.waiting) == (1, 0)


def test_queue_is_first_come_first_served() -> None:
    """Waiting runs start in the order of their arrival."""
    started: list[int] = []
    admission = Admission(slots=1, queue=3)
    first = admission.enter(nothing, 10.0)
    tickets = [
        admission.enter(lambda number=number: started.append(number), 10.0)  # type: ignore[misc]
        for number in range(3)
    ]
    for ticket in [first, *tickets]:
        admission.leave(ticket)
    assert started == [0, 1, 2]
    assert (admission.running, admission.waiting) == (0, 0)


def test_full_queue_refuses() -> None:
    """With every slot and queue position taken, a run is refused with a time to come again."""
    admission = Admission(slots=1, queue=1)
    for _ in range(2):
        admission.enter(nothing, 10.0)
    with pytest.raises(Overloaded) as refused:
        admission.enter(nothing, 10.0)
    assert refused.value.retry_after_s == 1
    assert (admission.running, admission.waiting) == (1, 1)


def test_no_queue_refuses_at_once() -> None:
    """Without a queue a second run is refused, not queued."""
    admission = Admission(slots=1, queue=0)
    admission.enter(nothing, 10.0)
    with pytest.raises(Overloaded):
        admission.enter(nothing, 10.0)


def test_run_that_cannot_meet_its_deadline_is_refused() -> None:
    """A run without time after the expected wait is refused, with that wait as advice."""
    admission = Admission(slots=2, queue=10)
    busy(admission, 800.0)
    for _ in range(2):
        admission.enter(nothing, 10_000.0)
    with pytest.raises(Overloaded) as refused:
        admission.enter(nothing, 1_190.0)
    assert admission.mean_service_s is not None
    assert admission.mean_service_s >= 800
    assert refused.value.retry_after_s == math.ceil(admission.mean_service_s / 2)
    admission.enter(nothing, 1_210.0)
    with pytest.raises(Overloaded) as later:
        admission.enter(nothing, 1_210.0)
    assert later.value.retry_after_s > refused.value.retry_after_s


def test_no_run_is_refused_before_the_first_has_ended() -> None:
    """Before the first run has ended, a run is queued however short its time."""
    admission = Admission(slots=1, queue=1)
    admission.enter(nothing, 10.0)
    admission.enter(nothing, 0.001)
    assert admission.waiting == 1


def test_leaving_the_queue_frees_the_position() -> None:
    """A run that gives up waiting starts no other and frees one position."""
    started: list[str] = []
    admission = Admission(slots=1, queue=1)
    admission.enter(nothing, 10.0)
    waiting = admission.enter(lambda: started.append("waiting"), 10.0)
    admission.leave(waiting)
    assert started == []
    assert (admission.running, admission.waiting) == (1, 0)
    admission.enter(nothing, 10.0)


def test_queue_time_is_not_service_time() -> None:
    """Time in the queue does not count as service time."""
    admission = Admission(slots=1, queue=1)
    first = admission.enter(nothing, 10.0)
    waiting = admission.enter(nothing, 10.0)
    admission.leave(waiting)
    assert admission.mean_service_s is None
    admission.leave(first)
    assert admission.mean_service_s == pytest.approx(0.0, abs=5.0)


def test_mean_follows_the_service_times() -> None:
    """The running mean moves towards the observed service times."""
    admission = Admission(slots=1, queue=1)
    busy(admission, 1_000.0)
    for _ in range(50):
        busy(admission, 100.0)
    assert admission.mean_service_s == pytest.approx(100.0, abs=20.0)


@given(
    slots=st.integers(1, 4),
    queue=st.integers(0, 4),
    moves=st.lists(st.integers(0, 30), max_size=60),
)
def test_slots_are_never_lost_or_given_twice(slots: int, queue: int, moves: list[int]) -> None:
    """Whatever the order of arrivals and ends, the counts agree and no run waits for nothing."""
    admission = Admission(slots, queue)
    inside: list[Ticket] = []
    started: list[int] = []
    for move in moves:
        if move % 2 or not inside:
            try:
                inside.append(admission.enter(lambda: started.append(1), math.inf))
            except Overloaded:
                assert len(inside) == slots + queue
        else:
            admission.leave(inside.pop(move % len(inside)))
        assert admission.running == min(len(inside), slots)
        assert admission.waiting == len(inside) - admission.running
        assert sum(t.admitted_at is not None for t in inside) == admission.running
    for ticket in list(inside):
        admission.leave(ticket)
    assert (admission.running, admission.waiting) == (0, 0)


def test_placed_at_is_monotonic_time() -> None:
    """A ticket has the time at which it got its slot."""
    before = time.monotonic()
    ticket = Admission(1, 0).enter(nothing, 1.0)
    assert ticket.admitted_at is not None
    assert before <= ticket.admitted_at <= time.monotonic()
