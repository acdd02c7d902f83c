"""Does the four jobs of a process that has the store open, one after another on one thread."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import psycopg
import sqlalchemy as sa

from app.runs.tasks import EngineStats
from app.tasks.heartbeat import Heartbeat

_EVERY_S = 0.5
# If a round takes longer than this, the store counts as unreachable.
_STALE_S = 3.0
_STOP_TIMEOUT_S = 5.0


class Job(Protocol):
    """A job. Both methods block, and run on the thread of the supervisor."""

    def run(self) -> None:
        """Do one round."""
        ...

    def restart(self) -> None:
        """Forget how long something was waited for: the store was away meanwhile."""
        ...


class Supervisor:
    """Has the thread of the jobs. The heartbeat comes first: it says whether the store is there."""

    def __init__(
        self, heartbeat: Heartbeat, others: tuple[Job, ...], failed: Callable[[BaseException], None]
    ) -> None:
        self._heartbeat = heartbeat
        self._jobs: tuple[Job, ...] = (heartbeat, *others)
        self._failed = failed
        self._done_at = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watchkeeper-tasks", daemon=True)

    @property
    def stats(self) -> EngineStats:
        """The last statistics. A store that delays the jobs counts as unreachable too.

        The counts stay: a queue that nobody can read has not become empty.
        """
        stats = self._heartbeat.stats
        in_time = time.monotonic() - self._done_at <= _STALE_S
        return stats if in_time else replace(stats, reachable=False)

    def start(self) -> None:
        """Start the thread. Blocks for the first statistics, which a busy store may refuse."""
        with suppress(sa.exc.SQLAlchemyError):
            self._heartbeat.count()
        self._done_at = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread. Blocks for a moment."""
        self._stop.set()
        if self._thread.is_alive():  # it may never have been started
            self._thread.join(timeout=_STOP_TIMEOUT_S)

    def _work(self) -> None:
        while not self._stop.wait(_EVERY_S):
            began = time.monotonic()
            try:
                for job in self._jobs:
                    self._do(job)
                is_away = time.monotonic() - began > _STALE_S  # it delays other processes too
            except (sa.exc.SQLAlchemyError, psycopg.Error, OSError):
                is_away = True
            if is_away:
                for job in self._jobs:
                    job.restart()
            self._done_at = time.monotonic()

    def _do(self, job: Job) -> None:
        try:
            job.run()
        except (sa.exc.SQLAlchemyError, psycopg.Error, OSError):
            raise
        except Exception as wrong:  # noqa: BLE001 - without this thread nobody requeues runs
            self._failed(wrong)
