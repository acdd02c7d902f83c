"""What only the process that has a run may do to it; each is one transaction with the check.

The engine gives every claim of a run a token of its own. A process that lost the run, and has it
again perhaps, has another token, so what it began before is refused.
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

# For those who write beside us, in PostgreSQL's own words: a run by its id and claim, kept so
# until their transaction ends.
HELD = (
    "select 1 from dbos.workflow_status"
    " where workflow_uuid = %s and status = 'PENDING' and owner_xid = %s for share"
)


@dataclass(frozen=True, slots=True)
class Owned:
    """One claim of a run.

    Its methods block. They raise Cancelled when the run's caller has ended it and this process is
    to say so, and HandedOver when it is another process's by now, or was when it was cancelled.
    """

    store: Store
    tables: Tables
    task_id: str
    token: str | None
    process: str | None

    def check(self) -> None:
        """Make sure that the run is still ours."""
        with self.store.worker.begin() as connection:
            self._check(connection)

    def append(self, offset: int, row: Mapping[str, Any]) -> None:
        """Write one row of the log, at its place: a row that is there already is not written.

        The trace of an attempt, which its first row has, is noted on the run too.
        """
        values = {
            "workflow_uuid": self.task_id,
            "key": LOG,
            "offset": offset,
            "value": json.dumps(dict(row)),
            "function_id": 0,
        }
        with self.store.worker.begin() as connection:
            # Written first, since SQLite takes its lock for it; what is refused is rolled back.
            connection.execute(self.tables.insert_once(values))
            self._check(connection)
            if row.get("trace"):
                noted = {TRACE: row["trace"]}
                connection.execute(self.tables.noting(self._mine(), noted))

    def note(self, noted: Mapping[str, Any]) -> None:
        """Note something on the run's row."""
        with self.store.worker.begin() as connection:
            changed = connection.execute(self.tables.noting(self._mine(), noted))
            if changed.rowcount != 1:
                self._refuse(connection)

    def end(self, noted: Mapping[str, Any]) -> None:
        """Note how the run ended, which stands from now on.

        An order to stop that came after that end, and that nothing was said of, is taken back:
        the end has been told. So long after the order that its callers were told `cancelled`, it
        stands.
        """
        ordered_at = self.tables.runs.c.attributes[FINISHED].as_float()
        in_time = sa.and_(self._unreported(), ordered_at > time.time() - STOP_S)
        ended = self.tables.noting(sa.or_(self._mine(), in_time), noted)
        with self.store.worker.begin() as connection:
            claimed = ended.values(status="PENDING", owner_xid=self.token, completed_at=None)
            if connection.execute(claimed).rowcount != 1:
                self._refuse(connection)

    def requeue_own(self) -> None:
        """Put the run back into its queue, if it is still ours."""
        with self.store.worker.begin() as connection:
            connection.execute(self.tables.requeueing(self._mine()))

    def record_stop(self) -> bool:
        """Tell whoever cancelled the run, if somebody did, that it is not at work here any more.

        What became of it, if that was told, is left as it is, and false is given.
        """
        with self.store.worker.begin() as connection:
            said = connection.execute(self.tables.noting(self._unreported(), {STUCK: False}))
            return said.rowcount == 1

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
        """It was cancelled while it was at work here, and nothing was said of that yet."""
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


def requeue(store: Store, tables: Tables, row: Mapping[str, Any], noted: Mapping[str, Any]) -> bool:
    """Put back a run whose owner is gone, with notes.

    False, and nothing is changed, if it was cancelled, ended or taken since its row was read.
    """
    as_seen = _as_seen(tables, row)
    with store.calls.begin() as connection:
        still = connection.execute(tables.noting(as_seen, noted)).rowcount == 1
        if still:
            connection.execute(tables.requeueing(as_seen))
        return still


def lose(store: Store, tables: Tables, row: Mapping[str, Any], noted: Mapping[str, Any]) -> bool:
    """Give up a run whose owner is gone, with notes; false, as above, if it is not any more."""
    with store.calls.begin() as connection:
        return connection.execute(tables.losing(_as_seen(tables, row), noted)).rowcount == 1


def _as_seen(tables: Tables, row: Mapping[str, Any]) -> sa.ColumnElement[bool]:
    run = tables.runs.c
    return sa.and_(
        run.workflow_uuid == row["workflow_uuid"],
        run.status == "PENDING",
        run.owner_xid.is_not_distinct_from(row["owner_xid"]),
    )
