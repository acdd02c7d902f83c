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
from app.tasks.store import Store, refuses_content
from app.tasks.tables import Tables

# Reports the end of a batch for one claim: an error, or None if all of it is written.
Settle = Callable[[Claim, RunError | None], None]

# What a store or its driver raises.
_ERRORS = (sa.exc.SQLAlchemyError, psycopg.Error, sqlite3.Error, OSError)
# PostgreSQL counts a value that exceeds one of its limits as an operational error.
_LIMIT_EXCEEDED = "54"


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
        except Exception as unavailable:  # a write may raise an error of any driver
            if not _is_outage(unavailable):
                raise
            self.close()
            raise Outage from unavailable

    def _write(self, batch: Batch, settle: Settle) -> None:
        try:
            lost = self._write_together(batch)
        except Exception as refused:
            if _is_outage(refused) and not self._is_served(refused):
                raise
            self._write_each(batch, settle)
        else:
            for claim in batch:
                settle(claim, lost.get(claim))

    def _write_each(self, batch: Batch, settle: Settle) -> None:
        """Write claim by claim, so that one which the store does not take delays no other."""
        unavailable: Exception | None = None
        for claim, entries in batch.items():
            try:
                settle(claim, self._write_alone(claim, entries))
            except Exception as refused:
                if not (_is_outage(refused) and self._is_served(refused)):
                    raise
                unavailable = refused
        if unavailable is not None:
            raise unavailable

    def _is_served(self, refused: Exception) -> bool:
        """Whether the store serves this connection, although it did not take a batch."""
        driver = refused.orig if isinstance(refused, sa.exc.DBAPIError) else refused
        if self._connection is None or _is_of_the_file(driver):
            return False
        try:
            with self._connection.begin():
                self._connection.execute(sa.select(1))
        except sa.exc.SQLAlchemyError:
            return False
        return True

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


def _is_outage(refused: BaseException) -> bool:
    """Whether the store may take the same writes later. Else it refuses one of them."""
    if isinstance(refused, sa.exc.DBAPIError) and refused.connection_invalidated:
        return True
    driver = refused.orig if isinstance(refused, sa.exc.DBAPIError) else refused
    if isinstance(driver, psycopg.Error) and (driver.sqlstate or "").startswith(_LIMIT_EXCEEDED):
        return False
    return isinstance(refused, _ERRORS) and not refuses_content(refused)


def _is_of_the_file(error: BaseException | None) -> bool:
    """Whether a SQLite file takes no write at all, as when it is locked or its disk is full."""
    return isinstance(error, sqlite3.OperationalError) and (
        error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_ERROR
    )
