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
from app.runs.tasks import Stand, Until
from app.tasks.rows import LOG, OUTCOME, STUCK, is_at_rest
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
    until: Until
    told: asyncio.Future[Stand | BaseException | None]

    def tell(self, what: Stand | BaseException | None) -> None:
        """Wake it; only the first time counts."""
        if not self.told.done():
            self.told.set_result(what)


class Watcher:
    """One for each process. It asks only while somebody waits."""

    def __init__(self, store: Store, tables: Tables) -> None:
        self._store = store
        self._tables = tables
        self._waiters: set[Waiter] = set()
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    async def let_go(self) -> None:
        """Look a last time, then wake all who wait; from now on nobody does."""
        if self._waiters:
            with suppress(StoreUnavailable):
                await self._look_once()
        self._closed = True
        self._tell_all(None)

    async def wait(self, task_id: str, until: Until, within_s: float) -> Stand | None:
        """How a run stands as soon as it stands so.

        None where it does not in that time, or where nobody may wait any more. Raises
        StoreUnavailable.
        """
        if self._closed:
            return None
        waiter = Waiter(task_id, until, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="watcher of runs")
            self._looking.add_done_callback(self._heard)
        try:
            await asyncio.wait({waiter.told}, timeout=within_s)
        finally:
            self._waiters.discard(waiter)
        told = waiter.told.result() if waiter.told.done() else None
        if isinstance(told, BaseException):
            raise told
        return told

    async def follow(self, task_id: str, event: int) -> AsyncIterator[Sequence[Entry]]:
        """The events of a run's log as they come, whichever process writes them; none in between.

        Begins at that event, or a little before. Ends when the run has ended and all were given,
        or when nobody may wait.
        """
        place: tuple[int, int] | None = None
        ended = False
        while not (ended or self._closed):
            told: list[Entry] = []
            try:
                if place is None:
                    place = await self._store.call(self._place, task_id, event)
                row, number = place
                stand = await self.wait(task_id, _has_ended_or_more_than(row), _NOTHING_S)
                if stand is not None and stand.rows > row:
                    log = self._tables.log
                    found = await self._store.call(log, self._store.calls, task_id, row)
                    said = itertools.chain.from_iterable(one["events"] for one in found)
                    told = [Entry(n, name, data) for n, (name, data) in enumerate(said, number + 1)]
                    place = row + len(found), number + len(told)
                # A run that has ended writes no more, so what was found is the rest.
                ended = stand is not None and stand.ended
            except StoreUnavailable:  # it is followed on when the store is back
                await asyncio.sleep(_AGAIN_S)
            yield told

    def _place(self, task_id: str, event: int) -> tuple[int, int]:
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

    async def _look(self) -> None:
        while self._waiters:
            try:
                await self._look_once()
            except StoreUnavailable:
                self._tell_all(StoreUnavailable())
            await asyncio.sleep(_LOOK_S)
        self._looking = None

    async def _look_once(self) -> None:
        ids = {waiter.task_id for waiter in self._waiters}
        stands = await self._store.call(self._stands, ids)
        for waiter in self._waiters:
            if waiter.task_id in ids:  # others came while it was asked
                stand = stands.get(waiter.task_id, _GONE)
                if waiter.until(stand):
                    waiter.tell(stand)

    def _stands(self, ids: Collection[str]) -> dict[str, Stand]:
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
            return {task_id: _stand(*of_it) for task_id, *of_it in found}

    def _heard(self, looking: asyncio.Task[None]) -> None:
        """A fault of ours is that of all who wait."""
        if not looking.cancelled() and (fault := looking.exception()) is not None:
            self._looking = None
            self._tell_all(fault)

    def _tell_all(self, what: Stand | BaseException | None) -> None:
        for waiter in self._waiters:
            waiter.tell(what)


# A run that was dropped while somebody waited: there is no more to come.
_GONE = Stand(ended=True, rows=0, told=True)


def _stand(status: str, last: int | None, noted: Mapping[str, Any] | None) -> Stand:
    noted = noted or {}
    told = noted.get(STUCK) is not None or noted.get(OUTCOME) is not None
    return Stand(ended=is_at_rest(status, noted), rows=0 if last is None else last + 1, told=told)


def _has_ended_or_more_than(rows: int) -> Until:
    return lambda stand: stand.ended or stand.rows > rows
