"""Looks after the store from one thread: who died, what was cancelled, how much waits.

The engine recovers only what a process of the same name left behind. Here every process looks
for runs whose process is gone and puts them back into their queue, where any other takes them.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import sqlalchemy as sa
from dbos import DBOSClient

from app.runs.errors import Cancelled, RunError, StoreUnavailable, WorkerLost
from app.runs.tasks import HUNG_S, EngineStats
from app.tasks import ownership, rows
from app.tasks.liveness import locks_of
from app.tasks.ownership import Owned
from app.tasks.store import Store
from app.tasks.tables import Tables
from app.tasks.worker import Worker

_EVERY_S = 0.5
_STATS_EVERY_S = 2.0
# A look at the store that takes longer than this meets one that does not answer.
_STALE_S = 3.0
_PURGE_EVERY_S = 60.0
_PURGE_AT_ONCE = 500
_SHOWN_WITHIN_S = 5.0
# A run that is this process's, and that it does not work, for so long: it has fallen down.
_ORPHAN_S = 10.0
# A run that kills its process must not tour the fleet: so often in a row it is taken over without
# getting further, no more.
MAX_TAKEOVERS_WITHOUT_PROGRESS = 10


@dataclass(frozen=True, slots=True)
class Hooks:
    """Whom the supervisor tells; each is called on its thread."""

    # A run worked here was cancelled, or is another process's by now (false).
    stop: Callable[[str, bool], None] = lambda task_id, cancelled: None
    # A dead process's run, of an agent, was put back.
    recovered: Callable[[str, str], None] = lambda task_id, agent: None
    # A run that nobody works was given up, or cancelled: nobody else tells its end.
    ended_without_worker: Callable[[str, RunError], None] = lambda task_id, error: None
    # Runs whose steps are of no use any more; and everything else that is older than that.
    delete_steps: Callable[[Sequence[str]], "Future[None]"] = lambda ids: Future()
    purge: Callable[[float], None] = lambda before: None
    # A fault of ours, after which it goes on looking.
    failed: Callable[[BaseException], None] = lambda error: None


class Supervisor:
    """One for each process that has the store open."""

    def __init__(
        self,
        store: Store,
        client: DBOSClient,
        tables: Tables,
        me: str,
        hooks: Hooks,
        worker: Worker,
        *,
        keep_s: float,
        works: bool,
    ) -> None:
        self._stats = EngineStats(reserve_bytes=store.reserve_bytes)
        self._looked_at = time.monotonic()
        self._store = store
        self._client = client
        self._tables = tables
        self._me = me
        self._hooks = hooks
        self._worker = worker
        self._orphans: dict[str, float] = {}
        self._ordered: dict[str, tuple[str, float]] = {}
        self._deleting_steps: Future[None] | None = None
        self._forgets = True
        self._keep_s = keep_s
        self._works = works
        self._own = locks_of(store)
        self._probe = locks_of(store)
        self._suspects: dict[str, float] = {}
        self._late: dict[tuple[str, str | None], float] = {}
        self._next_stats = self._next_purge = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchkeeper-tasks", daemon=True)

    @property
    def stats(self) -> EngineStats:
        """What was last read; a store that holds up the look at it is out of reach as well."""
        if time.monotonic() - self._looked_at > _STALE_S:
            return self._out_of_reach()
        return self._stats

    def _out_of_reach(self) -> EngineStats:
        """What was read last still stands: a queue that nobody sees has not become empty."""
        return replace(self._stats, reachable=False)

    def show_alive(self) -> None:
        """Take this process's lock. Blocks. Raises StoreUnavailable where it cannot be had."""
        self._probe.sweep()
        deadline = time.monotonic() + _SHOWN_WITHIN_S
        while not self._own.acquire(self._me):
            # Another process, which sweeps, has it for a moment; or it was swept away.
            if time.monotonic() > deadline:
                raise StoreUnavailable
            time.sleep(0.01)

    def start(self) -> None:
        """Begin to look. Blocks for a first look, which a store that is busy may refuse."""
        with suppress(sa.exc.SQLAlchemyError):
            self._read_stats()
        self._looked_at = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End, and let others see that this process is gone. Blocks for a moment."""
        self._stop.set()
        if self._thread.is_alive():  # else it was never started
            self._thread.join(timeout=5.0)
        self._own.close()
        self._probe.close()

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY_S):
            try:
                self._look()
            except (sa.exc.SQLAlchemyError, psycopg.Error, OSError):
                # It is gone for now. Whoever looked dead meanwhile gets his time anew.
                self._suspects.clear()
                self._late.clear()
                self._stats = self._out_of_reach()
            except Exception as wrong:  # noqa: BLE001 - nobody else would look after the runs
                self._hooks.failed(wrong)
            self._looked_at = time.monotonic()

    def _look(self) -> None:
        now = time.monotonic()
        self._own.acquire(self._me)
        self._obey()
        self._tidy()
        self._report_cancelled_of_dead_processes()
        if self._works:
            self._take_over()
            self._take_overdue()
        if now >= self._next_stats:
            self._next_stats = now + _STATS_EVERY_S
            self._read_stats()
        if now >= self._next_purge:
            self._next_purge = now + _PURGE_EVERY_S
            self._purge()

    def _read_stats(self) -> None:
        self._tables.touch(self._store.calls)
        self._stats = EngineStats(
            agents=self._tables.loads(self._store.calls),
            free_bytes=self._store.free_bytes(),
            reserve_bytes=self._store.reserve_bytes,
        )

    def _obey(self) -> None:
        """Stop what was cancelled elsewhere, or taken away from this process."""
        mine = list(self._worker.working)
        if not mine:
            return
        states = self._tables.states(self._store.calls, mine)
        lost = [task_id for task_id in mine if states.get(task_id) != ("PENDING", self._me)]
        if lost:
            cancelled = self._tables.unreported_of(self._store.calls, self._me, lost)
            for task_id in lost:
                self._hooks.stop(task_id, task_id in cancelled)

    def _tidy(self) -> None:
        """Forget the steps of runs whose results are stored; take up again what fell down here.

        A result that could not be written, on a full disk, leaves a run that nobody works.
        """
        left = list(self._worker.left - self._worker.working)
        if left:
            states = self._tables.states(self._store.calls, left)
            over = {i for i in left if states.get(i, ("SUCCESS", None))[0] in rows.OVER}
            elsewhere = {i for i in left if i in states and states[i][1] != self._me}
            self._worker.left.difference_update(elsewhere - over)
            self._delete_steps(list(over))
        now = time.monotonic()
        rows_here = self._tables.of_process(self._store.calls, self._me)
        mine = {row["workflow_uuid"]: row for row in rows_here}
        for task_id in mine.keys() - self._worker.working:
            if now - self._orphans.setdefault(task_id, now) >= _ORPHAN_S:
                self.recover(mine[task_id], died=False)
                del self._orphans[task_id]
        if gone := list(self._orphans.keys() - mine.keys() - self._worker.working):
            for task_id in self._tables.unreported_of(self._store.calls, self._me, gone):
                self._record_stop(task_id, self._me)
        kept = mine.keys() - self._worker.working
        self._orphans = {i: since for i, since in self._orphans.items() if i in kept}

    def _delete_steps(self, ids: Sequence[str]) -> None:
        """Have steps forgotten, again and again until they are; a failure is told once."""
        if not ids or (self._deleting_steps is not None and not self._deleting_steps.done()):
            return

        def done(forgotten: "Future[None]") -> None:
            wrong = CancelledError() if forgotten.cancelled() else forgotten.exception()
            if wrong is None:
                self._worker.left.difference_update(ids)
            elif self._forgets:
                self._hooks.failed(wrong)
            self._forgets = wrong is None

        self._deleting_steps = self._hooks.delete_steps(ids)
        self._deleting_steps.add_done_callback(done)

    def ordered(self, task_id: str, owner: str) -> None:
        """A run that `owner` works was ordered to stop; it may be gone and not able to say so."""
        self._ordered[task_id] = owner, time.monotonic()

    def _report_cancelled_of_dead_processes(self) -> None:
        now = time.monotonic()
        for task_id, (owner, since) in list(self._ordered.items()):
            if owner == self._me or (now - since > _ORPHAN_S and self._is_reported(task_id, owner)):
                del self._ordered[task_id]
                continue
            if not self._probe.acquire(owner):
                continue
            try:
                if now - since >= self._probe.grace_s:
                    del self._ordered[task_id]
                    self._record_stop(task_id, owner)
            finally:
                self._probe.release(owner)

    def _is_reported(self, task_id: str, owner: str) -> bool:
        return not self._tables.unreported_of(self._store.calls, owner, [task_id])

    def _record_stop(self, task_id: str, owner: str) -> None:
        """Tell the end of a run that `owner` does not work any more, if it was cancelled."""
        if Owned(self._store, self._tables, task_id, None, owner).record_stop():
            self._hooks.ended_without_worker(task_id, Cancelled())

    def _take_over(self) -> None:
        now = time.monotonic()
        owners = self._tables.processes(self._store.calls) - {self._me}
        self._suspects = {name: since for name, since in self._suspects.items() if name in owners}
        for owner in owners:
            if not self._probe.acquire(owner):
                self._suspects.pop(owner, None)
                continue
            try:
                since = self._suspects.setdefault(owner, now)
                if now - since >= self._probe.grace_s:
                    for row in self._tables.of_process(self._store.calls, owner):
                        self.recover(row)
            finally:
                self._probe.release(owner)

    def _take_overdue(self) -> None:
        """Take runs from processes that hang: the next one ends them at once."""
        now = time.monotonic()
        rows_late = self._tables.overdue(self._store.calls, time.time())
        # By claim: whoever takes such a run up has his time as well, on a slow store too.
        late = {(row["workflow_uuid"], row["owner_xid"]): row for row in rows_late}
        self._late = {claim: self._late.get(claim, now) for claim in late}
        for claim, since in self._late.items():
            if now - since >= HUNG_S:
                self.recover(late[claim])

    def recover(self, row: Mapping[str, Any], *, died: bool = True) -> None:
        """Put back a run that nobody works any more; end it when its processes died too often.

        One that was cancelled, or ended, since its row was read is left as it is.
        """
        task_id, agent, before = row["workflow_uuid"], row["name"], row["attributes"] or {}
        reached = self._tables.reached(self._store.calls, task_id)
        got_further = reached > before.get(rows.REACHED, -1)
        in_vain = (0 if got_further else before.get(rows.IN_VAIN, 0)) + died
        noted: dict[str, Any] = {rows.REACHED: reached, rows.IN_VAIN: in_vain}
        if not self._tables.has_result(self._store.calls, task_id):
            noted[rows.OUTCOME] = None  # an end that was noted, and not stored, has not come
        if in_vain <= MAX_TAKEOVERS_WITHOUT_PROGRESS:
            if ownership.requeue(self._store, self._tables, row, noted):
                self._hooks.recovered(task_id, agent)
            return
        noted |= {rows.LOST: True, rows.FINISHED: time.time()}
        if ownership.lose(self._store, self._tables, row, noted):
            self._hooks.ended_without_worker(task_id, WorkerLost())

    def _purge(self) -> None:
        before = time.time() - self._keep_s
        ids = self._tables.expired(self._store.calls, before, _PURGE_AT_ONCE)
        if len(ids) == _PURGE_AT_ONCE:
            self._next_purge = 0.0  # there is more
        if ids:
            self._client.delete_workflows(ids)
            self._worker.left.update(ids)  # their steps go with the next look
        self._hooks.purge(before)
