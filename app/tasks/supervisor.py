"""Supervises the store from one thread: dead processes, cancelled runs, the length of queues.

DBOS itself recovers a run only in a process with the name of its owner. Here any process that
executes runs requeues those of dead or hanging owners, and any such process takes them over.
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

from app.runs.errors import Cancelled, RunError, WorkerLost
from app.runs.tasks import HUNG_S, EngineStats
from app.tasks import ownership, rows
from app.tasks.liveness import locks_of
from app.tasks.ownership import Owned
from app.tasks.store import Store, wait_for_lock
from app.tasks.tables import Tables
from app.tasks.worker import Worker

_EVERY_S = 0.5
_STATS_EVERY_S = 2.0
# If a round of checks takes longer than this, the store counts as unreachable.
_STALE_S = 3.0
_PURGE_EVERY_S = 60.0
_PURGE_AT_ONCE = 500
_OWN_LOCK_TIMEOUT_S = 5.0
# Owned by this process but not executing for this long: orphaned.
_ORPHAN_S = 10.0
# A run that kills every process must end: at most so many takeovers without a new iteration.
MAX_TAKEOVERS_WITHOUT_PROGRESS = 10


@dataclass(frozen=True, slots=True)
class Hooks:
    """Functions that the supervisor calls, on its own thread."""

    # Stop a run that executes here: it was cancelled (true), or this process lost it (false).
    stop: Callable[[str, bool], None] = lambda task_id, cancelled: None
    # A run was requeued for any of the reasons of `recover`: its id and its agent.
    recovered: Callable[[str, str], None] = lambda task_id, agent: None
    # Report the end of a run that was lost or cancelled, since no worker reports it.
    ended_without_worker: Callable[[str, RunError], None] = lambda task_id, error: None
    # Delete the graph checkpoints of these runs: no attempt needs them.
    delete_steps: Callable[[Sequence[str]], "Future[None]"] = lambda ids: Future()
    # Delete old rows of our own tables; the moment is in seconds since the epoch.
    purge: Callable[[float], None] = lambda before: None
    # A check raised an unexpected error. The supervisor continues.
    failed: Callable[[BaseException], None] = lambda error: None


class Supervisor:
    """One for each process that has the store open.

    It deletes runs `keep_s` after their end. With `works=False` this process takes no runs over.
    """

    def __init__(
        self,
        store: Store,
        client: DBOSClient,
        tables: Tables,
        process: str,
        hooks: Hooks,
        worker: Worker,
        *,
        keep_s: float,
        works: bool,
    ) -> None:
        self._stats = EngineStats(reserve_bytes=store.reserve_bytes)
        self._checked_at = time.monotonic()
        self._store = store
        self._client = client
        self._tables = tables
        self._process = process
        self._hooks = hooks
        self._worker = worker
        self._orphans: dict[str, float] = {}
        self._cancellations: dict[str, tuple[str, float]] = {}
        self._deleting_steps: Future[None] | None = None
        self._reports_failed_deletion = True
        self._keep_s = keep_s
        self._works = works
        self._own = locks_of(store)
        self._probe = locks_of(store)
        # When they were first seen: processes with a free lock, and overdue runs with their token.
        self._suspects: dict[str, float] = {}
        self._late: dict[tuple[str, str | None], float] = {}
        self._next_stats = self._next_purge = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchkeeper-tasks", daemon=True)

    @property
    def stats(self) -> EngineStats:
        """The last statistics. A store that delays the checks counts as unreachable too."""
        if time.monotonic() - self._checked_at > _STALE_S:
            return self._unreachable()
        return self._stats

    def _unreachable(self) -> EngineStats:
        """Keep the last counts: a queue that nobody can read has not become empty."""
        return replace(self._stats, reachable=False)

    def acquire_own_lock(self) -> None:
        """Acquire the lock of this process. Blocks. Raises StoreUnavailable after a timeout."""
        self._probe.sweep()
        # A sweep of another process may hold this lock for a moment, or remove its file.
        wait_for_lock(lambda: self._own.acquire(self._process), _OWN_LOCK_TIMEOUT_S)

    def start(self) -> None:
        """Start the thread. Blocks for the first statistics, which a busy store may refuse."""
        with suppress(sa.exc.SQLAlchemyError):
            self._read_stats()
        self._checked_at = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and release the lock of this process. Blocks for a moment."""
        self._stop.set()
        if self._thread.is_alive():  # it may never have been started
            self._thread.join(timeout=5.0)
        self._own.close()
        self._probe.close()

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY_S):
            try:
                self._check_all()
            except (sa.exc.SQLAlchemyError, psycopg.Error, OSError):
                # The store was unreachable: restart all grace periods.
                self._suspects.clear()
                self._late.clear()
                self._stats = self._unreachable()
            except Exception as wrong:  # noqa: BLE001 - without this thread nobody requeues runs
                self._hooks.failed(wrong)
            self._checked_at = time.monotonic()

    def _check_all(self) -> None:
        now = time.monotonic()
        self._own.acquire(self._process)
        self._stop_lost_runs()
        self._tidy()
        self._report_cancelled_of_dead_processes()
        if self._works:
            self._take_over()
            self._take_over_overdue()
        if now >= self._next_stats:
            self._next_stats = now + _STATS_EVERY_S
            self._read_stats()
        if now >= self._next_purge:
            self._next_purge = now + _PURGE_EVERY_S
            self._purge()

    def _read_stats(self) -> None:
        self._tables.check_writable(self._store.calls)
        self._stats = EngineStats(
            agents=self._tables.loads(self._store.calls),
            free_bytes=self._store.free_bytes(),
            reserve_bytes=self._store.reserve_bytes,
        )

    def _stop_lost_runs(self) -> None:
        """Stop local runs that were cancelled, or that another process has taken over."""
        executing = list(self._worker.executing)
        if not executing:
            return
        states = self._tables.states(self._store.calls, executing)
        owned = ("PENDING", self._process)
        lost = [task_id for task_id in executing if states.get(task_id) != owned]
        if lost:
            cancelled = self._tables.unreported_of(self._store.calls, self._process, lost)
            for task_id in lost:
                self._hooks.stop(task_id, task_id in cancelled)

    def _tidy(self) -> None:
        """Delete the checkpoints of runs that ended here, and requeue orphans of this process."""
        self._delete_steps_of_ended()
        self._requeue_orphans()

    def _delete_steps_of_ended(self) -> None:
        stopped = list(self._worker.recently_executed - self._worker.executing)
        if not stopped:
            return
        states = self._tables.states(self._store.calls, stopped)
        ended = {i for i in stopped if states.get(i, ("SUCCESS", None))[0] in rows.ENDED_STATUSES}
        elsewhere = {i for i in stopped if i in states and states[i][1] != self._process}
        self._worker.recently_executed.difference_update(elsewhere - ended)
        self._delete_steps(list(ended))

    def _requeue_orphans(self) -> None:
        """Requeue runs of this process whose result it could not store, as on a full disk."""
        now = time.monotonic()
        rows_here = self._tables.of_process(self._store.calls, self._process)
        owned = {row["workflow_uuid"]: row for row in rows_here}
        for task_id in owned.keys() - self._worker.executing:
            if now - self._orphans.setdefault(task_id, now) >= _ORPHAN_S:
                self.recover(owned[task_id], died=False)
                del self._orphans[task_id]
        if not_owned := list(self._orphans.keys() - owned.keys() - self._worker.executing):
            for task_id in self._tables.unreported_of(self._store.calls, self._process, not_owned):
                self._record_stop(task_id, self._process)
        idle = owned.keys() - self._worker.executing
        self._orphans = {i: since for i, since in self._orphans.items() if i in idle}

    def _delete_steps(self, ids: Sequence[str]) -> None:
        """Delete checkpoints; the next round retries a failure. Reports only the first one."""
        if not ids or (self._deleting_steps is not None and not self._deleting_steps.done()):
            return

        def done(deletion: "Future[None]") -> None:
            wrong = CancelledError() if deletion.cancelled() else deletion.exception()
            if wrong is None:
                self._worker.recently_executed.difference_update(ids)
            elif self._reports_failed_deletion:
                self._hooks.failed(wrong)
            self._reports_failed_deletion = wrong is None

        self._deleting_steps = self._hooks.delete_steps(ids)
        self._deleting_steps.add_done_callback(done)

    def watch_cancellation(self, task_id: str, owner: str) -> None:
        """From now on, report the end of this cancelled run if its owner is found dead."""
        self._cancellations[task_id] = owner, time.monotonic()

    def _report_cancelled_of_dead_processes(self) -> None:
        now = time.monotonic()
        for task_id, (owner, since) in list(self._cancellations.items()):
            if owner == self._process or (
                now - since > _ORPHAN_S and self._is_reported(task_id, owner)
            ):
                del self._cancellations[task_id]
                continue
            if not self._probe.acquire(owner):
                continue
            try:
                if now - since >= self._probe.grace_s:
                    del self._cancellations[task_id]
                    self._record_stop(task_id, owner)
            finally:
                self._probe.release(owner)

    def _is_reported(self, task_id: str, owner: str) -> bool:
        return not self._tables.unreported_of(self._store.calls, owner, [task_id])

    def _record_stop(self, task_id: str, owner: str) -> None:
        """Report the end of a run that `owner` no longer executes, if it was cancelled."""
        if Owned(self._store, self._tables, task_id, None, owner).record_stop():
            self._hooks.ended_without_worker(task_id, Cancelled())

    def _take_over(self) -> None:
        now = time.monotonic()
        owners = self._tables.processes(self._store.calls) - {self._process}
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

    def _take_over_overdue(self) -> None:
        """Requeue runs whose owner hangs: overdue for HUNG_S. The next owner ends them at once."""
        now = time.monotonic()
        rows_late = self._tables.overdue(self._store.calls, time.time())
        # Keyed by claim token too, so that the next owner gets a new grace period.
        late = {(row["workflow_uuid"], row["owner_xid"]): row for row in rows_late}
        self._late = {claim: self._late.get(claim, now) for claim in late}
        for claim, since in self._late.items():
            if now - since >= HUNG_S:
                self.recover(late[claim])

    def recover(self, row: Mapping[str, Any], *, died: bool = True) -> None:
        """Requeue a run whose owner died, hangs, or (`died=False`) could not store its result.

        After too many of the first two without a new iteration, end it as lost. A run that was
        cancelled or has ended since its row was read stays unchanged.
        """
        task_id, agent, before = row["workflow_uuid"], row["name"], row["attributes"] or {}
        reached = self._tables.reached(self._store.calls, task_id)
        got_further = reached > before.get(rows.REACHED, -1)
        in_vain = (0 if got_further else before.get(rows.IN_VAIN, 0)) + died
        attributes: dict[str, Any] = {rows.REACHED: reached, rows.IN_VAIN: in_vain}
        if not self._tables.has_result(self._store.calls, task_id):
            attributes[rows.OUTCOME] = None  # an outcome without a stored result does not count
        if in_vain <= MAX_TAKEOVERS_WITHOUT_PROGRESS:
            if ownership.requeue(self._store, self._tables, row, attributes):
                self._hooks.recovered(task_id, agent)
            return
        attributes |= {rows.LOST: True, rows.FINISHED: time.time()}
        if ownership.lose(self._store, self._tables, row, attributes):
            self._hooks.ended_without_worker(task_id, WorkerLost())

    def _purge(self) -> None:
        before = time.time() - self._keep_s
        ids = self._tables.expired(self._store.calls, before, _PURGE_AT_ONCE)
        if len(ids) == _PURGE_AT_ONCE:
            self._next_purge = 0.0  # there is more
        if ids:
            self._client.delete_workflows(ids)
            self._worker.recently_executed.update(ids)  # for their checkpoints
        self._hooks.purge(before)
