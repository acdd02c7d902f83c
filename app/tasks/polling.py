"""Watches runs for whoever waits: one query asks for all that are awaited, however many wait."""

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
from app.tasks.rows import LOG, OUTCOME, STUCK, is_final
from app.tasks.store import Store
from app.tasks.tables import Tables

_LOOK_S = 0.1
_AGAIN_S = 0.5
# A follower is given a sign of life so often while nothing comes.
_NOTHING_S = 1.0
# Among so many rows of a log the one is looked for where a follower resumes.
_NEWEST = 50


@dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    """Somebody who waits until a run stands so; is told that, or why not, or nothing."""

    task_id: str
    condition: WaitCondition
    result: asyncio.Future[RunSnapshot | BaseException | None]

    def resolve(self, what: RunSnapshot | BaseException | None) -> None:
        """Wake it; only the first time counts."""
        if not self.result.done():
            self.result.set_result(what)


class RunPoller:
    """One for each process. It asks only while somebody waits."""

    def __init__(self, store: Store, tables: Tables) -> None:
        self._store = store
        self._tables = tables
        self._waiters: set[Waiter] = set()
        self._polling: asyncio.Task[None] | None = None
        self._closed = False

    async def release_waiters(self) -> None:
        """Look a last time, then wake all who wait; from now on nobody does."""
        if self._waiters:
            with suppress(StoreUnavailable):
                await self._poll_once()
        self._closed = True
        self._resolve_all(None)

    async def wait(
        self, task_id: str, condition: WaitCondition, timeout_s: float
    ) -> RunSnapshot | None:
        """How a run stands as soon as it stands so.

        None where it does not in that time, or where nobody may wait any more. Raises
        StoreUnavailable.
        """
        if self._closed:
            return None
        waiter = Waiter(task_id, condition, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll(), name="watcher of runs")
            self._polling.add_done_callback(self._on_looked)
        try:
            await asyncio.wait({waiter.result}, timeout=timeout_s)
        finally:
            self._waiters.discard(waiter)
        result = waiter.result.result() if waiter.result.done() else None
        if isinstance(result, BaseException):
            raise result
        return result

    async def follow(self, task_id: str, event: int) -> AsyncIterator[Sequence[Entry]]:
        """The events of a run's log as they come, whichever process writes them; none in between.

        Begins at that event, or a little before. Ends when the run has ended and all were given,
        or when nobody may wait.
        """
        position: tuple[int, int] | None = None
        ended = False
        while not (ended or self._closed):
            entries: list[Entry] = []
            try:
                if position is None:
                    position = await self._store.call(self._position, task_id, event)
                row, number = position
                snapshot = await self.wait(task_id, _has_ended_or_more_than(row), _NOTHING_S)
                if snapshot is not None and snapshot.rows > row:
                    log = self._tables.log
                    found = await self._store.call(log, self._store.calls, task_id, row)
                    events = itertools.chain.from_iterable(one["events"] for one in found)
                    entries = [
                        Entry(n, name, data) for n, (name, data) in enumerate(events, number + 1)
                    ]
                    position = row + len(found), number + len(entries)
                # A run that has ended writes no more, so what was found is the rest.
                ended = snapshot is not None and snapshot.ended
            except StoreUnavailable:  # it is followed on when the store is back
                await asyncio.sleep(_AGAIN_S)
            yield entries

    def _position(self, task_id: str, event: int) -> tuple[int, int]:
        """The row that has an event, and how many events are before it.

        Who resumes has read nearly all; for one that has not it is the first row.
        """
        log = self._tables.streams.c
        newest = (
            sa.select(log.offset, log.value)
            .where(log.workflow_uuid == task_id, log.key == LOG)
            .order_by(log.offset.desc())
            .limit(_NEWEST if event else 0)
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
            await asyncio.sleep(_LOOK_S)
        self._polling = None

    async def _poll_once(self) -> None:
        ids = {waiter.task_id for waiter in self._waiters}
        snapshots = await self._store.call(self._snapshots, ids)
        for waiter in self._waiters:
            if waiter.task_id in ids:  # others came while it was asked
                snapshot = snapshots.get(waiter.task_id, _GONE)
                if waiter.condition(snapshot):
                    waiter.resolve(snapshot)

    def _snapshots(self, ids: Collection[str]) -> dict[str, RunSnapshot]:
        """The end of a log is found by its index, however long it is."""
        run, log = self._tables.runs.c, self._tables.streams.c
        last = (
            sa.select(sa.func.max(log.offset))
            .where(log.workflow_uuid == run.workflow_uuid, log.key == LOG)
            .correlate(self._tables.runs)
            .scalar_subquery()
        )
        chosen = sa.select(run.workflow_uuid, run.status, last, run.attributes)
        with self._store.calls.connect() as connection:
            found = connection.execute(chosen.where(run.workflow_uuid.in_(ids)))
            return {task_id: _snapshot(*of_it) for task_id, *of_it in found}

    def _on_looked(self, looking: asyncio.Task[None]) -> None:
        """A fault of ours is that of all who wait."""
        if not looking.cancelled() and (fault := looking.exception()) is not None:
            self._polling = None
            self._resolve_all(fault)

    def _resolve_all(self, what: RunSnapshot | BaseException | None) -> None:
        for waiter in self._waiters:
            waiter.resolve(what)


# A run that was dropped while somebody waited: there is no more to come.
_GONE = RunSnapshot(ended=True, rows=0, reported=True)


def _snapshot(status: str, last: int | None, noted: Mapping[str, Any] | None) -> RunSnapshot:
    noted = noted or {}
    reported = noted.get(STUCK) is not None or noted.get(OUTCOME) is not None
    return RunSnapshot(
        ended=is_final(status, noted), rows=0 if last is None else last + 1, reported=reported
    )


def _has_ended_or_more_than(rows: int) -> WaitCondition:
    return lambda snapshot: snapshot.ended or snapshot.rows > rows
