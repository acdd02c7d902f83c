"""Statements that only the owner of a run may execute. Each checks ownership in its transaction.

DBOS creates a new claim token for each attempt at a run. The statements of an earlier attempt are
refused, even if the same process executes the next attempt.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import sqlalchemy as sa

from app.runs.errors import Cancelled, HandedOver
from app.runs.tasks import STOP_S
from app.tasks.rows import FINISHED, LOG, STUCK, TRACE
from app.tasks.store import Store
from app.tasks.tables import Tables

# For code with its own connection to PostgreSQL: locks the row of a run until the end of the
# transaction. Returns no row unless the run has this id and this claim token.
HELD = (
    "select 1 from dbos.workflow_status"
    " where workflow_uuid = %s and status = 'PENDING' and owner_xid = %s for share"
)


@dataclass(frozen=True, slots=True)
class Owned:
    """A run that an attempt with `token` in `process` owns, or owned. Its methods block.

    They raise Cancelled if the run was cancelled and `process` has to report its end. They raise
    HandedOver if another process owns the run, or owned it when it was cancelled. `record_stop`
    needs no token, and `process` may then be a dead one.
    """

    store: Store
    tables: Tables
    task_id: str
    token: str | None
    process: str | None

    def check(self) -> None:
        """Raise unless this attempt still owns the run."""
        with self.store.worker.begin() as connection:
            self._check(connection)

    def append(self, offset: int, row: Mapping[str, Any]) -> None:
        """Write a row of the log at an offset, unless the log has a row there.

        The first row of an attempt has its trace, which is stored on the run's row too.
        """
        values = {
            "workflow_uuid": self.task_id,
            "key": LOG,
            "offset": offset,
            "value": json.dumps(dict(row)),
            "function_id": 0,
        }
        with self.store.worker.begin() as connection:
            # The insert comes first: SQLite locks for it. A failed check rolls it back.
            connection.execute(self.tables.insert_once(values))
            self._check(connection)
            if row.get("trace"):
                merging = self.tables.merging(self._mine(), {TRACE: row["trace"]})
                connection.execute(merging)

    def merge_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Merge attributes into the run's row."""
        with self.store.worker.begin() as connection:
            changed = connection.execute(self.tables.merging(self._mine(), attributes))
            if changed.rowcount != 1:
                self._refuse(connection)

    def end(self, attributes: Mapping[str, Any]) -> None:
        """Store how the run ended. This end is final.

        It overrides a cancellation of the last STOP_S seconds whose result no process has reported.
        After that callers read `cancelled`, and it stays so.
        """
        cancelled_at = self.tables.runs.c.attributes[FINISHED].as_float()
        in_time = sa.and_(self._unreported(), cancelled_at > time.time() - STOP_S)
        ended = self.tables.merging(sa.or_(self._mine(), in_time), attributes)
        with self.store.worker.begin() as connection:
            restored = ended.values(status="PENDING", owner_xid=self.token, completed_at=None)
            if connection.execute(restored).rowcount != 1:
                self._refuse(connection)

    def requeue_own(self) -> None:
        """Requeue the run, if this process still owns it."""
        with self.store.worker.begin() as connection:
            connection.execute(self.tables.requeueing(self._mine()))

    def record_stop(self) -> bool:
        """Store that `process` no longer executes this cancelled run.

        Returns false if it was not cancelled, or if its end is already reported.
        """
        with self.store.worker.begin() as connection:
            changed = connection.execute(self.tables.merging(self._unreported(), {STUCK: False}))
            return changed.rowcount == 1

    def _check(self, connection: sa.Connection) -> None:
        run = self.tables.runs.c
        mine = sa.select(run.workflow_uuid).where(self._mine())
        if not self.store.is_file:
            mine = mine.with_for_update()
        if connection.execute(mine).one_or_none() is None:
            self._refuse(connection)

    def _refuse(self, connection: sa.Connection) -> NoReturn:
        cancelled = sa.select(self.tables.runs.c.name).where(self._unreported())
        if connection.execute(cancelled).one_or_none() is None:
            raise HandedOver
        raise Cancelled

    def _unreported(self) -> sa.ColumnElement[bool]:
        """The run was cancelled while `process` owned it, and its end is not reported yet."""
        run = self.tables.runs.c
        return sa.and_(
            run.workflow_uuid == self.task_id,
            run.executor_id == self.process,
            self.tables.unreported,
        )

    def _mine(self) -> sa.ColumnElement[bool]:
        run = self.tables.runs.c
        return sa.and_(
            run.workflow_uuid == self.task_id,
            run.status == "PENDING",
            run.owner_xid == self.token,
        )


def requeue(
    store: Store, tables: Tables, row: Mapping[str, Any], attributes: Mapping[str, Any]
) -> bool:
    """Take the run of a row from its owner: requeue it, and merge attributes into its row.

    Returns false, and changes nothing, if the run was cancelled, ended or taken over since its row
    was read.
    """
    unchanged = _unchanged(tables, row)
    with store.calls.begin() as connection:
        changed = connection.execute(tables.merging(unchanged, attributes)).rowcount == 1
        if changed:
            connection.execute(tables.requeueing(unchanged))
        return changed


def lose(
    store: Store, tables: Tables, row: Mapping[str, Any], attributes: Mapping[str, Any]
) -> bool:
    """End the run of a row as lost. Returns false in the same cases as `requeue`."""
    losing = tables.losing(_unchanged(tables, row), attributes)
    with store.calls.begin() as connection:
        return connection.execute(losing).rowcount == 1


def _unchanged(tables: Tables, row: Mapping[str, Any]) -> sa.ColumnElement[bool]:
    run = tables.runs.c
    return sa.and_(
        run.workflow_uuid == row["workflow_uuid"],
        run.status == "PENDING",
        run.owner_xid.is_not_distinct_from(row["owner_xid"]),
    )
