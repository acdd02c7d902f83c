"""The statements that change the state of a run, one for each transition of `states`.

Each checks the state, and who makes the change, in the statement itself or in its transaction.
DBOS creates a new claim token for each attempt at a run. The statements of an earlier attempt are
refused, even if the same process executes the next attempt. All methods block.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import sqlalchemy as sa

from app.runs.errors import Cancelled, HandedOver
from app.runs.tasks import Body, Result
from app.tasks import payload, rows
from app.tasks.states import (
    CANCEL,
    CANCEL_RUNNING,
    CLAIMS,
    GIVE_UP,
    REPORT_STOP,
    STOPPING,
    TAKE_OVER,
    RunState,
    in_state,
)
from app.tasks.store import Store
from app.tasks.tables import Tables

# For code with its own connection to PostgreSQL: locks the row of a run until the end of the
# transaction. Returns no row unless the run has this id and this claim token.
HELD = (
    "select 1 from dbos.workflow_status"
    " where workflow_uuid = %s and status = 'PENDING' and owner_xid = %s for share"
)
# A row that is requeued, as by the engine's own resume. The name of a queue is that of its agent.
_REQUEUED: dict[str, Any] = {
    "status": "ENQUEUED",
    "owner_xid": None,
    "recovery_attempts": 0,
    "started_at_epoch_ms": None,
}
_CANCELLED: dict[str, Any] = {
    "status": "CANCELLED",
    "owner_xid": None,
    "queue_name": None,
    "started_at_epoch_ms": None,
}


@dataclass(frozen=True, slots=True)
class Claim:
    """A process's claim of a run, which may have passed to another since.

    Methods raise Cancelled if the run was cancelled and `process` has to report how it stopped.
    They raise HandedOver if another process has the run, or had it when it was cancelled.
    """

    store: Store
    tables: Tables
    task_id: str
    token: str
    process: str

    def start(self, timeout_s: float) -> Mapping[str, Any]:
        """Count an attempt. Its first one starts the run, and sets its deadline.

        Returns the row of the run, with `now`.
        """
        run, now = self.tables.runs.c, self.tables.now
        stored = run.attributes
        started = sa.func.coalesce(stored[rows.STARTED].as_float(), now)
        deadline = sa.func.coalesce(stored[rows.DEADLINE].as_float(), now + timeout_s)
        attributes = self.tables.json(
            **{
                rows.STARTED_TOKEN: self.token,
                rows.ATTEMPTS: sa.func.coalesce(stored[rows.ATTEMPTS].as_integer(), 0) + 1,
                rows.STARTED: started,
                rows.DEADLINE: deadline,
                # A former version stored an outcome without its result. It does not count.
                rows.OUTCOME: None,
            }
        )
        starting = self.tables.updating(self._mine(), attributes).returning(*run, now.label("now"))
        with self.store.worker.begin() as connection:
            found = connection.execute(starting).mappings().one_or_none()
            if found is None:
                self._refuse(connection)
            return dict(found)

    def appending(self, offset: int, row: Mapping[str, Any]) -> sa.Insert:
        """Return what the journal executes for a row of the log, unless the log has that row.

        The journal checks that this claim still has the run.
        """
        return self.tables.insert_once(
            {
                "workflow_uuid": self.task_id,
                "key": rows.LOG,
                "offset": offset,
                "value": json.dumps(dict(row)),
                "function_id": 0,
            }
        )

    def store_trace(self, trace: str) -> bool:
        """Store the trace of this attempt on the run's row.

        Not in the journal, which must not wait for the row: a step of this run may have locked it.
        """
        return self._change(self.tables.updating(self._mine(), {rows.TRACE: trace}))

    def end(self, result: Result, offset: int, row: Mapping[str, Any] | None) -> None:
        """Store how the run ended, its result and the last row of its log: callers read all three.

        It overrides a cancellation of the last seconds whose end no process has reported. After
        that callers read `cancelled`, and it stays so.
        """
        now = self.tables.now
        attributes: dict[str, Any] = {rows.OUTCOME: result.outcome.value, rows.FINISHED: now}
        if row is not None and row.get("trace"):
            attributes[rows.TRACE] = row["trace"]
        in_time = sa.and_(self._stopping(), in_state(self.tables, RunState.CANCELLING))
        ending = self.tables.updating(
            sa.or_(self._mine(), in_time),
            self.tables.json(**attributes),
            status="SUCCESS",
            owner_xid=None,
            completed_at=_milliseconds(now),
        )
        output = payload.text({"outcome": result.outcome.value, "body": dict(result.body)})
        with self.store.worker.begin() as connection:
            if connection.execute(ending).rowcount != 1:
                self._refuse(connection)
            connection.execute(self.tables.store_output(self.task_id, output))
            if row is not None:
                connection.execute(self.appending(offset, row))

    def hand_over(self) -> bool:
        """Requeue the run. Returns false if this claim has it no more."""
        requeued = self.tables.updating(
            self._mine(), {}, queue_name=self.tables.runs.c.name, **_REQUEUED
        )
        return self._change(requeued)

    def report_stop(self, body: Body | None = None, *, stuck: bool = False) -> bool:
        """Store that the claim's process no longer executes this cancelled run, and how it ended.

        Returns false if it was not cancelled, or if that is stored already.
        """
        attributes: dict[str, Any] = {rows.STUCK: stuck}
        if body is not None:
            attributes[rows.STOPPED] = payload.text(body)
        return self._change(self.tables.updating(self._stopping(), attributes))

    def survived(self) -> bool:
        """Take back the count of a takeover: the process that lost the run had not died."""
        run = self.tables.runs.c
        lost = sa.and_(
            run.workflow_uuid == self.task_id,
            run.attributes[rows.TAKEN_FROM].as_string() == self.token,
        )
        counted = sa.func.coalesce(run.attributes[rows.IN_VAIN].as_integer(), 0)
        fewer = sa.case((counted > 0, counted - 1), else_=0)
        attributes = self.tables.json(**{rows.IN_VAIN: fewer, rows.TAKEN_FROM: None})
        return self._change(self.tables.updating(lost, attributes))

    def _change(self, statement: sa.Update) -> bool:
        with self.store.worker.begin() as connection:
            return connection.execute(statement).rowcount == 1

    def _refuse(self, connection: sa.Connection) -> NoReturn:
        stopping = sa.select(self.tables.runs.c.name).where(self._stopping())
        if connection.execute(stopping).one_or_none() is None:
            raise HandedOver
        raise Cancelled

    def _stopping(self) -> sa.ColumnElement[bool]:
        """The run was cancelled while this claim had it, and its end is not reported yet."""
        run = self.tables.runs.c
        return sa.and_(
            run.workflow_uuid == self.task_id,
            run.executor_id == self.process,
            run.attributes[rows.STARTED_TOKEN].as_string() == self.token,
            in_state(self.tables, *STOPPING),
        )

    def _mine(self) -> sa.ColumnElement[bool]:
        return _has(self.tables, self.task_id, self.token)


class Transitions:
    """The changes that a process makes to runs of any process."""

    def __init__(self, store: Store, tables: Tables) -> None:
        self._store = store
        self._tables = tables

    def cancel(self, task_id: str) -> Mapping[str, Any] | None:
        """Cancel a run, as the engine's own cancel does. Returns its row, with its last owner.

        Returns None if the run was not live. A run that no worker has started is ended by this
        statement. One that is running is ended once its owner has reported.
        """
        tables, run = self._tables, self._tables.runs.c
        at = {rows.FINISHED: tables.now}
        attributes = sa.case(
            (in_state(tables, *CANCEL_RUNNING.sources), tables.json(**at)),
            else_=tables.json(**at, **{rows.STUCK: False}),
        )
        live = in_state(tables, *CANCEL.sources, *CANCEL_RUNNING.sources)
        # A process of a former version stores its outcome first: that run has ended.
        ended = run.attributes[rows.OUTCOME].as_string().is_not(None)
        cancelling = tables.updating(
            sa.and_(run.workflow_uuid == task_id, live, sa.not_(ended)),
            attributes,
            completed_at=_milliseconds(tables.now),
            **_CANCELLED,
        ).returning(*run, tables.now.label("now"))
        with self._store.change() as connection:
            found = connection.execute(cancelling).mappings().one_or_none()
            return None if found is None else dict(found)

    def report_stop_of(self, task_id: str, process: str, token: str | None = None) -> bool:
        """Store that a process no longer executes this cancelled run, or one claim of it.

        Returns false if it was not cancelled there, or if that is stored already.
        """
        run = self._tables.runs.c
        started = run.attributes[rows.STARTED_TOKEN].as_string()
        stopped = sa.and_(
            run.workflow_uuid == task_id,
            run.executor_id == process,
            sa.true() if token is None else started == token,
            in_state(self._tables, *REPORT_STOP.sources),
        )
        return self._change(self._tables.updating(stopped, {rows.STUCK: False}))

    def take_over(self, row: Mapping[str, Any], attributes: Mapping[str, Any]) -> bool:
        """Requeue the run of a row, and merge attributes into it.

        Returns false, and changes nothing, if the run was cancelled, ended or claimed since its
        row was read.
        """
        requeued = self._tables.updating(
            self._unchanged(row, TAKE_OVER.sources),
            # A process of a former version may have noted an outcome, and died before the result.
            {**attributes, rows.OUTCOME: None},
            queue_name=self._tables.runs.c.name,
            **_REQUEUED,
        )
        return self._change(requeued)

    def give_up(self, row: Mapping[str, Any], attributes: Mapping[str, Any]) -> bool:
        """End the run of a row as lost. Returns false in the same cases as `take_over`."""
        now = self._tables.now
        lost = self._tables.json(**attributes, **{rows.LOST: True, rows.FINISHED: now})
        ended = self._tables.updating(
            self._unchanged(row, GIVE_UP.sources),
            lost,
            completed_at=_milliseconds(now),
            **_CANCELLED,
        )
        return self._change(ended)

    def _change(self, statement: sa.Update) -> bool:
        with self._store.calls.begin() as connection:
            return connection.execute(statement).rowcount == 1

    def _unchanged(
        self, row: Mapping[str, Any], states: tuple[RunState, ...]
    ) -> sa.ColumnElement[bool]:
        run = self._tables.runs.c
        unchanged = sa.and_(
            run.workflow_uuid == row["workflow_uuid"],
            in_state(self._tables, *states),
            run.owner_xid.is_not_distinct_from(row["owner_xid"]),
        )
        if self._tables.is_file:
            return unchanged
        # A process that hangs within a transaction may have locked the row: the next round tries.
        free = sa.select(run.workflow_uuid).where(unchanged).with_for_update(skip_locked=True)
        return run.workflow_uuid.in_(free)


def _has(tables: Tables, task_id: str, token: str) -> sa.ColumnElement[bool]:
    """The run is claimed, with this token."""
    run = tables.runs.c
    return sa.and_(run.workflow_uuid == task_id, in_state(tables, *CLAIMS), run.owner_xid == token)


def _milliseconds(moment: sa.ColumnElement[float]) -> sa.ColumnElement[int]:
    return sa.cast(moment * 1000, sa.BigInteger)
