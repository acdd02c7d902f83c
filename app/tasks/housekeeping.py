"""The fourth job: deletes what nobody needs, which is steps of ended runs, and old runs."""

import threading
import time
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future

from dbos import DBOSClient

from app.tasks.hooks import Hooks
from app.tasks.queries import Queries
from app.tasks.states import state_of

_PURGE_EVERY_S = 60.0
_PURGE_AT_ONCE = 500


class Housekeeping:
    """Deletes the steps of runs once they have ended, and runs `keep_s` after their end."""

    def __init__(
        self, queries: Queries, client: DBOSClient, process: str, hooks: Hooks, *, keep_s: float
    ) -> None:
        self._queries = queries
        self._client = client
        self._process = process
        self._hooks = hooks
        self._keep_s = keep_s
        self._with_steps: set[str] = set()
        self._lock = threading.Lock()
        self._deleting: Future[None] | None = None
        self._reports_failure = True
        self._next_purge = 0.0

    def add(self, *task_ids: str) -> None:
        """Runs that no longer execute here; once they have ended, their steps are deleted."""
        with self._lock:
            self._with_steps.update(task_ids)

    @property
    def left(self) -> frozenset[str]:
        """The runs whose steps may still be stored."""
        with self._lock:
            return frozenset(self._with_steps)

    def run(self) -> None:
        """Do one round."""
        self._delete_steps()
        if time.monotonic() >= self._next_purge:
            self._next_purge = time.monotonic() + _PURGE_EVERY_S
            self._purge()

    def restart(self) -> None:
        """Do nothing: what is to be deleted waits."""

    def _delete_steps(self) -> None:
        """Delete steps; the next round retries a failure. Reports only the first one."""
        candidates = self.left
        if not candidates or (self._deleting is not None and not self._deleting.done()):
            return
        rows = {row["workflow_uuid"]: row for row in self._queries.rows(list(candidates))}
        live = {task_id: row for task_id, row in rows.items() if state_of(row).is_live}
        # The process that executes a run now deletes its steps.
        self._drop(i for i, row in live.items() if row["executor_id"] != self._process)
        ended = candidates - live.keys()
        if ended:
            self._deleting = self._hooks.delete_steps(sorted(ended))
            self._deleting.add_done_callback(lambda deletion: self._on_deleted(deletion, ended))

    def _on_deleted(self, deletion: "Future[None]", ended: frozenset[str]) -> None:
        wrong = CancelledError() if deletion.cancelled() else deletion.exception()
        if wrong is None:
            self._drop(ended)
        elif self._reports_failure:
            self._hooks.failed(wrong)
        self._reports_failure = wrong is None

    def _drop(self, task_ids: Iterable[str]) -> None:
        with self._lock:
            self._with_steps.difference_update(task_ids)

    def _purge(self) -> None:
        ids = self._queries.ended_before(self._keep_s, _PURGE_AT_ONCE)
        if len(ids) == _PURGE_AT_ONCE:
            self._next_purge = 0.0  # there is more
        if ids:
            self._client.delete_workflows(ids)
            self.add(*ids)
        self._hooks.purge()
