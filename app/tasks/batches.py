"""Writes a batch of the journal: what many runs have added, in one transaction.

The transaction looks once at the owners of all these runs. A claim that has lost its run writes
nothing, and one whose content the store refuses fails alone.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

import psycopg
import sqlalchemy as sa

from app.runs.errors import Cancelled, HandedOver, NotStorable, RunError
from app.tasks.backlog import Batch, Claim, Entry, Write
from app.tasks.rows import STARTED_TOKEN
from app.tasks.states import CLAIMS, STOPPING, in_state
from app.tasks.store import Store
from app.tasks.tables import Tables

# Reports the end of a batch for one claim: an error, or None if all of it is written.
Settle = Callable[[Claim, RunError | None], None]

_OUTAGES = (
    sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.InternalError, sa.exc.TimeoutError,
    psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError,
    sqlite3.OperationalError, OSError,
)  # fmt: skip
# Drivers count some errors of one statement as operational: those of a limit of PostgreSQL that
# its value exceeds, and for SQLite those without a code of their own, as of a missing table.
_LIMIT_EXCEEDED = "54"
_SQLITE_ERROR = 1


class Outage(Exception):
    """The store is unavailable. What is not settled may be written later."""


class BatchWriter:
    """Writes batches by a connection of its own, which it opens again after an outage.

    Every method blocks. One thread uses it.
    """

    def __init__(self, store: Store, tables: Tables) -> None:
        self._store = store
        self._tables = tables
        self._connection: sa.Connection | None = None

    def write(self, batch: Batch, settle: Settle) -> None:
        """Write a batch. Raises Outage if the store is unavailable; some claims may be settled."""
        try:
            self._write(batch, settle)
        except Exception as unavailable:
            if not _is_outage(unavailable):
                raise
            self.close()
            raise Outage from unavailable

    def _write(self, batch: Batch, settle: Settle) -> None:
        try:
            lost = self._write_together(batch)
        except Exception as refused:
            if _is_outage(refused):
                raise
            for claim, entries in batch.items():
                settle(claim, self._write_alone(claim, entries))
        else:
            for claim in batch:
                settle(claim, lost.get(claim))

    def _write_together(self, batch: Batch) -> dict[Claim, RunError]:
        """Write all of it, or nothing. Returns the claims that have lost their runs."""
        writes = any(entry.write is not None for entries in batch.values() for entry in entries)
        with self._transaction(writes=writes) as connection:
            lost = self._lost(connection, batch, lock=writes)
            for claim, entries in batch.items():
                for entry in entries if claim not in lost else ():
                    _execute(connection, entry.write)
            return lost

    def _write_alone(self, claim: Claim, entries: Collection[Entry]) -> RunError | None:
        """Write what one claim has added, up to the first write that the store refuses."""
        try:
            with self._transaction(writes=True) as connection:
                lost = self._lost(connection, [claim], lock=True)
                if claim in lost:
                    return lost[claim]
                for entry in entries:
                    if (refusal := _refusal_of(connection, entry.write)) is not None:
                        return refusal
        except Exception as refused:
            if _is_outage(refused):
                raise
            return _as_refusal(refused)
        return None

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[sa.Connection]:
        if self._connection is None:
            self._connection = self._store.worker.connect()
        with self._connection.begin():
            if writes and self._store.is_file:
                # Before the look at the owners: no other process then changes them.
                self._connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield self._connection

    def _lost(
        self, connection: sa.Connection, claims: Collection[Claim], *, lock: bool
    ) -> dict[Claim, RunError]:
        """Return the claims that do not have their runs, each with the reason.

        The others keep their runs until the transaction ends, if it locks.
        """
        run = self._tables.runs.c
        wanted = [(claim.task_id, claim.token) for claim in claims]
        owned = (
            sa.select(run.workflow_uuid, run.owner_xid)
            .where(
                sa.tuple_(run.workflow_uuid, run.owner_xid).in_(wanted),
                in_state(self._tables, *CLAIMS),
            )
            .order_by(run.workflow_uuid)  # two transactions lock in the same order
        )
        if lock and not self._store.is_file:
            owned = owned.with_for_update(read=True)
        have = {(task_id, token) for task_id, token in connection.execute(owned)}
        lost = [claim for claim in claims if (claim.task_id, claim.token) not in have]
        if not lost:
            return {}
        stopping = self._stopping(connection, lost)
        return {
            claim: Cancelled() if _parts_of(claim) in stopping else HandedOver() for claim in lost
        }

    def _stopping(
        self, connection: sa.Connection, claims: Collection[Claim]
    ) -> set[tuple[str, str, str]]:
        """Return the parts of the claims that cancelled runs had, if their end is not reported."""
        run = self._tables.runs.c
        started = run.attributes[STARTED_TOKEN].as_string()
        chosen = sa.select(run.workflow_uuid, started, run.executor_id).where(
            run.workflow_uuid.in_([claim.task_id for claim in claims]),
            in_state(self._tables, *STOPPING),
        )
        return {(task_id, token, process) for task_id, token, process in connection.execute(chosen)}

    def close(self) -> None:
        """Close the connection. The next batch opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sa.exc.SQLAlchemyError, psycopg.Error, sqlite3.Error, OSError):
                connection.invalidate()  # it may be broken, or in a transaction
                connection.close()


def _parts_of(claim: Claim) -> tuple[str, str, str]:
    return claim.task_id, claim.token, claim.process


def _execute(connection: sa.Connection, write: Write | None) -> None:
    if isinstance(write, sa.Executable):
        connection.execute(write)
    elif write is not None:
        write(connection)


def _refusal_of(connection: sa.Connection, write: Write | None) -> RunError | None:
    """Execute one write. If the store refuses it, undo only this write, and return the error."""
    try:
        with connection.begin_nested():
            _execute(connection, write)
    except Exception as refused:
        if _is_outage(refused):
            raise
        return _as_refusal(refused)
    return None


def _as_refusal(refused: Exception) -> RunError:
    if isinstance(refused, RunError):
        return refused
    error = NotStorable()
    error.__cause__ = refused
    return error


def _is_outage(refused: Exception) -> bool:
    """Whether the store may take the same writes later. Else it refuses one of them."""
    if isinstance(refused, sa.exc.DBAPIError) and refused.connection_invalidated:
        return True
    driver = refused.orig if isinstance(refused, sa.exc.DBAPIError) else refused
    if isinstance(driver, psycopg.Error) and (driver.sqlstate or "").startswith(_LIMIT_EXCEEDED):
        return False
    if isinstance(driver, sqlite3.OperationalError):
        return driver.sqlite_errorcode & 0xFF != _SQLITE_ERROR
    return isinstance(refused, _OUTAGES)
