"""Follows runs for callers that wait: one query reads all of them, however many callers wait."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from app.runs.errors import StoreUnavailable
from app.runs.ring import Entry
from app.runs.tasks import RunSnapshot, WaitCondition
from app.tasks.queries import Queries
from app.tasks.rows import LOG
from app.tasks.states import state_of
from app.tasks.store import Store
from app.tasks.tables import Tables

_POLL_S = 0.1
_RETRY_S = 0.5
# A follower gets an empty batch this often while no events come.
_IDLE_S = 1.0
# A follower that resumes is looked up in this many of the newest rows of a log.
_NEWEST_ROWS = 50


@dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    """A caller that waits until a run meets a condition.

    The result is the snapshot that meets it, an error, or None once nobody may wait.
    """

    task_id: str
    condition: WaitCondition
    result: asyncio.Future[RunSnapshot | BaseException | None]

    def resolve(self, result: RunSnapshot | BaseException | None) -> None:
        """Wake the caller. Only the first result counts."""
        if not self.result.done():
            self.result.set_result(result)


class RunPoller:
    """One for each process. It polls only while a caller waits."""

    def __init__(self, store: Store, tables: Tables) -> None:
        self._store = store
        self._tables = tables
        self._queries = Queries(tables, store.calls)
        self._waiters: set[Waiter] = set()
        self._polling: asyncio.Task[None] | None = None
        self._closed = False

    async def release_waiters(self) -> None:
        """Poll a last time, then wake every waiter. From now on no caller waits."""
        if self._waiters:
            with suppress(StoreUnavailable):
                await self._poll_once()
        self._closed = True
        self._resolve_all(None)

    async def wait(
        self, task_id: str, condition: WaitCondition, timeout_s: float
    ) -> RunSnapshot | None:
        """Return the snapshot of a run as soon as it meets the condition.

        Returns None after the timeout, or once no caller may wait. Raises StoreUnavailable.
        """
        if self._closed:
            return None
        waiter = Waiter(task_id, condition, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll(), name="poller of runs")
            self._polling.add_done_callback(self._on_polling_ended)
        try:
            await asyncio.wait({waiter.result}, timeout=timeout_s)
        finally:
            self._waiters.discard(waiter)
        result = waiter.result.result() if waiter.result.done() else None
        if isinstance(result, BaseException):
            raise result
        return result

    async def follow(self, task_id: str, event: int) -> AsyncIterator[Sequence[Entry]]:
        """Yield the events of a run's log as they come, and empty batches in between.

        Starts at that event, or a little before. Ends with the last event of a run that has ended,
        or once no caller may wait.
        """
        position: tuple[int, int] | None = None
        ended = False
        while not (ended or self._closed):
            entries: list[Entry] = []
            try:
                if position is None:
                    position = await self._store.call(self._position, task_id, event)
                row, number = position
                snapshot = await self.wait(task_id, _has_ended_or_more_than(row), _IDLE_S)
                if snapshot is not None and snapshot.rows > row:
                    found = await self._store.call(self._queries.log, task_id, row)
                    events = itertools.chain.from_iterable(one["events"] for one in found)
                    entries = [
                        Entry(n, name, data) for n, (name, data) in enumerate(events, number + 1)
                    ]
                    position = row + len(found), number + len(entries)
                # A run that has ended writes no more rows, so these were the last.
                ended = snapshot is not None and snapshot.ended
            except StoreUnavailable:  # the follower keeps its position and gets an empty batch
                await asyncio.sleep(_RETRY_S)
            yield entries

    def _position(self, task_id: str, event: int) -> tuple[int, int]:
        """Return the row that has an event, and the number of events before that row.

        Most followers that resume have read nearly all events. The others start at the first row.
        """
        log = self._tables.streams.c
        newest = (
            sa.select(log.offset, log.value)
            .where(log.workflow_uuid == task_id, log.key == LOG)
            .order_by(log.offset.desc())
            .limit(_NEWEST_ROWS if event else 0)
        )
        with self._store.calls.connect() as connection:
            for row, value in connection.execute(newest):
                first = json.loads(value).get("first")
                if first is None:  # an earlier version wrote it
                    break
                if first <= event:
                    return row, first - 1
        return 0, 0

    async def _poll(self) -> None:
        while self._waiters:
            try:
                await self._poll_once()
            except StoreUnavailable:
                self._resolve_all(StoreUnavailable())
            await asyncio.sleep(_POLL_S)
        self._polling = None

    async def _poll_once(self) -> None:
        ids = {waiter.task_id for waiter in self._waiters}
        snapshots = await self._store.call(self._snapshots, ids)
        for waiter in self._waiters:
            if waiter.task_id in ids:  # the others began to wait during the query
                snapshot = snapshots.get(waiter.task_id, _DELETED)
                if waiter.condition(snapshot):
                    waiter.resolve(snapshot)

    def _snapshots(self, ids: Collection[str]) -> dict[str, RunSnapshot]:
        """Read the snapshots. An index finds the end of a log, however long the log is."""
        run, log = self._tables.runs.c, self._tables.streams.c
        last = (
            sa.select(sa.func.max(log.offset))
            .where(log.workflow_uuid == run.workflow_uuid, log.key == LOG)
            .correlate(self._tables.runs)
            .scalar_subquery()
        )
        columns = (run.workflow_uuid, run.status, run.owner_xid, run.attributes)
        chosen = sa.select(*columns, self._tables.now.label("now"), last.label("last"))
        with self._store.calls.connect() as connection:
            found = connection.execute(chosen.where(run.workflow_uuid.in_(ids))).mappings()
            return {row["workflow_uuid"]: _snapshot(dict(row)) for row in found}

    def _on_polling_ended(self, polling: asyncio.Task[None]) -> None:
        """Raise our own fault in every waiter."""
        if not polling.cancelled() and (fault := polling.exception()) is not None:
            self._polling = None
            self._resolve_all(fault)

    def _resolve_all(self, result: RunSnapshot | BaseException | None) -> None:
        for waiter in self._waiters:
            waiter.resolve(result)


# A run that was deleted while a caller waited: no more events come.
_DELETED = RunSnapshot(ended=True, rows=0, reported=True)


def _snapshot(row: Mapping[str, Any]) -> RunSnapshot:
    state, last = state_of(row), row["last"]
    rows = 0 if last is None else last + 1
    return RunSnapshot(ended=state.is_final, rows=rows, reported=state.is_reported)


def _has_ended_or_more_than(rows: int) -> WaitCondition:
    return lambda snapshot: snapshot.ended or snapshot.rows > rows
