"""The states of a stored run, and every change from one to another.

A row of the engine decides the state: its status, its claim token and our attributes. `state_of`
reads it from a row, `in_state` asks the database for it, and a test compares the two. No other
module decides by status or attributes. The statements that make the changes are in `transitions`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from app.runs.tasks import STOP_S, TaskStatus
from app.tasks.rows import FINISHED, LOST, OUTCOME, STARTED_TOKEN, STUCK
from app.tasks.tables import Tables, has_status

# A cancellation that no process has reported for this long is final.
UNREPORTED_AFTER_S = STOP_S


class RunState(StrEnum):
    """The state of a stored run."""

    QUEUED = "queued"
    # A process has claimed the run and has not started it.
    CLAIMED = "claimed"
    RUNNING = "running"
    # Cancelled while it was running. Its owner still may report that it had ended before.
    CANCELLING = "cancelling"
    # Cancelled for good, though its owner has not reported that it stopped.
    UNREPORTED = "unreported"
    # A person has to answer it; no process executes it.
    WAITING = "waiting"
    COMPLETED = "completed"
    ITERATION_LIMIT = "iteration_limit"
    BUDGET_LIMIT = "budget_limit"
    TIMEOUT = "timeout"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    EXPIRED = "expired"

    @property
    def is_live(self) -> bool:
        """Whether the run has not ended and no caller has cancelled it."""
        return self in LIVE

    @property
    def is_final(self) -> bool:
        """Whether callers read the run as ended, and will always read the same end."""
        return self not in (*LIVE, RunState.CANCELLING)

    @property
    def is_reported(self) -> bool:
        """Whether nobody has to report how the run ended."""
        return self.is_final and self is not RunState.UNREPORTED

    @property
    def has_result(self) -> bool:
        """Whether a result may be stored. One that was cancelled or given up has none."""
        return self in ENDS

    @property
    def as_status(self) -> TaskStatus:
        """The state as callers read it."""
        return _STATUSES[self]


_QUEUED, _RUNNING = RunState.QUEUED, RunState.RUNNING
CLAIMS = (RunState.CLAIMED, RunState.RUNNING)
LIVE = (RunState.QUEUED, *CLAIMS, RunState.WAITING)
STOPPING = (RunState.CANCELLING, RunState.UNREPORTED)
ENDS = tuple(state for state in RunState if state not in (*LIVE, *STOPPING))
_STATUSES = {
    RunState.QUEUED: TaskStatus.PENDING,
    RunState.CLAIMED: TaskStatus.RUNNING,
    RunState.RUNNING: TaskStatus.RUNNING,
    RunState.CANCELLING: TaskStatus.RUNNING,
    RunState.UNREPORTED: TaskStatus.CANCELLED,
    RunState.WAITING: TaskStatus.RUNNING,
    RunState.COMPLETED: TaskStatus.COMPLETED,
    RunState.ITERATION_LIMIT: TaskStatus.ITERATION_LIMIT,
    RunState.BUDGET_LIMIT: TaskStatus.FAILED,
    RunState.TIMEOUT: TaskStatus.TIMEOUT,
    RunState.FAILED: TaskStatus.FAILED,
    RunState.CANCELLED: TaskStatus.CANCELLED,
    RunState.INTERRUPTED: TaskStatus.FAILED,
    RunState.EXPIRED: TaskStatus.FAILED,
}


class By(StrEnum):
    """Who may make a transition."""

    CALLER = "a caller, in any process"
    ENGINE = "the engine of a process that works"
    OWNER = "the process that claimed the run"
    RECOVERY = "the recovery of any process that works"
    CANCELLATIONS = "the cancellations job of any process"
    HOUSEKEEPING = "the housekeeping of any process"
    TIME = "time, by the clock of the database"


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of a run from one of some states to one of others.

    No source means that the run is not stored before; no target, not afterwards. A reserved
    transition has its place here, and nothing makes it yet.
    """

    name: str
    sources: tuple[RunState, ...]
    targets: tuple[RunState, ...]
    by: tuple[By, ...]
    reserved: bool = False


_STARTED_ENDS = tuple(end for end in ENDS if end is not RunState.EXPIRED)

SUBMIT = Transition("submit", (), (_QUEUED,), (By.CALLER,))
CLAIM = Transition("claim", (_QUEUED,), (RunState.CLAIMED,), (By.ENGINE,))
START = Transition("start", (RunState.CLAIMED,), (_RUNNING,), (By.OWNER,))
# An end overrides a cancellation that came while it was being reported.
END = Transition("end", (_RUNNING, RunState.CANCELLING), _STARTED_ENDS, (By.OWNER,))
CANCEL = Transition("cancel", (_QUEUED, RunState.CLAIMED), (RunState.CANCELLED,), (By.CALLER,))
CANCEL_RUNNING = Transition("cancel", (_RUNNING,), (RunState.CANCELLING,), (By.CALLER,))
LOSE_PATIENCE = Transition(
    f"{UNREPORTED_AFTER_S:.0f} s without a report",
    (RunState.CANCELLING,),
    (RunState.UNREPORTED,),
    (By.TIME,),
)
REPORT_STOP = Transition(
    "report stop", STOPPING, (RunState.CANCELLED,), (By.OWNER, By.CANCELLATIONS)
)
HAND_OVER = Transition("hand over", CLAIMS, (_QUEUED,), (By.OWNER,))
TAKE_OVER = Transition("take over", CLAIMS, (_QUEUED,), (By.RECOVERY,))
GIVE_UP = Transition("give up", CLAIMS, (RunState.FAILED,), (By.RECOVERY,))
PURGE = Transition("purge", (*ENDS, RunState.UNREPORTED), (), (By.HOUSEKEEPING,))
WAIT = Transition("ask", (_RUNNING,), (RunState.WAITING,), (By.OWNER,), reserved=True)
ANSWER = Transition("answer", (RunState.WAITING,), (_QUEUED,), (By.CALLER,), reserved=True)
CANCEL_WAITING = Transition(
    "cancel", (RunState.WAITING,), (RunState.CANCELLED,), (By.CALLER,), reserved=True
)
EXPIRE = Transition(
    "expire", (RunState.WAITING,), (RunState.EXPIRED,), (By.HOUSEKEEPING,), reserved=True
)
TRANSITIONS = (
    SUBMIT,
    CLAIM,
    START,
    END,
    CANCEL,
    CANCEL_RUNNING,
    LOSE_PATIENCE,
    REPORT_STOP,
    HAND_OVER,
    TAKE_OVER,
    GIVE_UP,
    WAIT,
    ANSWER,
    CANCEL_WAITING,
    EXPIRE,
    PURGE,
)

# The ends that a result names by its outcome. Another outcome means that the run has failed.
_BY_OUTCOME = {
    state.value: state for state in ENDS if state not in (RunState.FAILED, RunState.EXPIRED)
}


def state_of(row: Mapping[str, Any]) -> RunState:
    """Return the state of a row that was read with `now`, the moment of the database."""
    attributes = row["attributes"] or {}
    match row["status"]:
        case "ENQUEUED":
            return RunState.QUEUED
        case "PENDING":
            started = attributes.get(STARTED_TOKEN)
            is_started = started is not None and started == row["owner_xid"]
            return RunState.RUNNING if is_started else RunState.CLAIMED
        case "CANCELLED":
            return _cancelled(attributes, row["now"])
        case "SUCCESS":
            return _BY_OUTCOME.get(attributes.get(OUTCOME, ""), RunState.FAILED)
        case _:
            return RunState.FAILED


def _cancelled(attributes: Mapping[str, Any], now: float) -> RunState:
    if attributes.get(LOST) is not None:
        return RunState.FAILED
    if attributes.get(STUCK) is not None:
        return RunState.CANCELLED
    at = attributes.get(FINISHED)
    in_time = at is not None and now - at <= UNREPORTED_AFTER_S
    return RunState.CANCELLING if in_time else RunState.UNREPORTED


def in_state(tables: Tables, *states: RunState) -> sa.ColumnElement[bool]:
    """Return the condition that a run is in one of the states."""
    wanted = set(states)
    whole = [status for status, ones in _WHOLE.items() if ones <= wanted]
    rest = wanted.difference(*(_WHOLE[status] for status in whole))
    conditions = [_CONDITIONS[state](tables) for state in states if state in rest]
    if whole:
        conditions.append(has_status(tables.runs.c.status, *whole))
    return sa.or_(*conditions)


def is_over(tables: Tables) -> sa.ColumnElement[bool]:
    """Return the condition that no process will execute a run (again), in the form of an index."""
    return tables.runs.c.status.in_(("SUCCESS", "ERROR", "CANCELLED"))


def _is_started(tables: Tables) -> sa.ColumnElement[bool]:
    run = tables.runs.c
    return sa.func.coalesce(run.attributes[STARTED_TOKEN].as_string() == run.owner_xid, sa.false())


def _is_claim(tables: Tables, *, started: bool) -> sa.ColumnElement[bool]:
    is_started = _is_started(tables)
    claimed = has_status(tables.runs.c.status, "PENDING")
    return sa.and_(claimed, is_started if started else sa.not_(is_started))


def _is_stopping(tables: Tables, *, in_time: bool) -> sa.ColumnElement[bool]:
    run = tables.runs.c
    cancelled_at = run.attributes[FINISHED].as_float()
    is_in_time = sa.func.coalesce(tables.now - cancelled_at <= UNREPORTED_AFTER_S, sa.false())
    return sa.and_(
        run.status == "CANCELLED",
        run.attributes[LOST].as_string().is_(None),
        run.attributes[STUCK].as_string().is_(None),
        is_in_time if in_time else sa.not_(is_in_time),
    )


def _is_cancelled(tables: Tables) -> sa.ColumnElement[bool]:
    run = tables.runs.c
    reported = sa.and_(
        run.status == "CANCELLED",
        run.attributes[LOST].as_string().is_(None),
        run.attributes[STUCK].as_string().is_not(None),
    )
    return sa.or_(reported, _has_outcome(tables, RunState.CANCELLED))


def _has_outcome(tables: Tables, *states: RunState) -> sa.ColumnElement[bool]:
    run = tables.runs.c
    outcome = run.attributes[OUTCOME].as_string()
    return sa.and_(run.status == "SUCCESS", outcome.in_([state.value for state in states]))


def _has_failed(tables: Tables) -> sa.ColumnElement[bool]:
    run = tables.runs.c
    outcome = run.attributes[OUTCOME].as_string()
    other = sa.func.coalesce(outcome.not_in(list(_BY_OUTCOME)), sa.true())
    return sa.or_(
        sa.and_(run.status == "SUCCESS", other),
        sa.and_(run.status == "CANCELLED", run.attributes[LOST].as_string().is_not(None)),
        run.status.not_in(("ENQUEUED", "PENDING", "CANCELLED", "SUCCESS")),
    )


# The states that together are one status of the engine, for which there is an index.
_WHOLE = {"ENQUEUED": {RunState.QUEUED}, "PENDING": set(CLAIMS)}
# Conditions of states whose rows nothing writes yet.
_NONE: Callable[[Tables], sa.ColumnElement[bool]] = lambda _: sa.false()  # noqa: E731
_CONDITIONS: Mapping[RunState, Callable[[Tables], sa.ColumnElement[bool]]] = {
    RunState.QUEUED: lambda tables: has_status(tables.runs.c.status, "ENQUEUED"),
    RunState.CLAIMED: lambda tables: _is_claim(tables, started=False),
    RunState.RUNNING: lambda tables: _is_claim(tables, started=True),
    RunState.CANCELLING: lambda tables: _is_stopping(tables, in_time=True),
    RunState.UNREPORTED: lambda tables: _is_stopping(tables, in_time=False),
    RunState.CANCELLED: _is_cancelled,
    RunState.FAILED: _has_failed,
    RunState.WAITING: _NONE,
    RunState.EXPIRED: _NONE,
    **{
        end: lambda tables, end=end: _has_outcome(tables, end)  # type: ignore[misc]
        for end in (
            RunState.COMPLETED,
            RunState.ITERATION_LIMIT,
            RunState.BUDGET_LIMIT,
            RunState.TIMEOUT,
            RunState.INTERRUPTED,
        )
    },
}
