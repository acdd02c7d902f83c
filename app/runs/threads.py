"""Threads for work that cannot be cancelled: sync tools, sync models and sync graph nodes.

asyncio's default pool has few threads, shares them with name lookups and waits for them at exit,
so a few hung tools stop everything. This pool has daemon threads and a cap of its own, and name
lookups have a small pool of theirs. Each job has the run that submitted it, so that threads that
have not stopped with their run can be counted. Two attempts at a background run are two runs here.
"""

import itertools
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from app.runs.deadline import Current, current

P = ParamSpec("P")
T = TypeVar("T")

_RESOLVER_THREADS = 4
# With abandoned threads the pool has at most this many times the limit.
_CAP = 8
_NAME_LOOKUPS: tuple[object, ...] = (socket.getaddrinfo, socket.getnameinfo)


class DaemonThreads(ThreadPoolExecutor):
    """An executor whose threads never hold up the exit of the process.

    A job that finds no free thread waits in order; a waiting job can be cancelled, a running one
    cannot. It is a ThreadPoolExecutor because `loop.set_default_executor` requires one.
    """

    def __init__(self, limit: int, name: str) -> None:
        super().__init__(max_workers=1)  # its own threads are never started
        self.limit = limit
        self._name = name
        self._numbers = itertools.count(1)
        self._free = 0
        self._threads_alive = 0
        self._closed = False
        self._jobs: deque[tuple[Future[Any], Callable[[], Any], Current | None]] = deque()
        self._ready = threading.Condition()
        self._busy_by_run: Counter[Current | None] = Counter()
        self._ended: set[Current | None] = set()

    @property
    def busy(self) -> int:
        """How many threads execute a job."""
        with self._ready:
            return self._busy_by_run.total()

    @property
    def abandoned(self) -> int:
        """How many threads execute jobs of runs that have ended."""
        with self._ready:
            return self._abandoned()

    def busy_for(self, run: Current) -> int:
        """How many threads execute jobs of one run."""
        with self._ready:
            return self._busy_by_run[run]

    def abandon(self, run: Current) -> int:
        """Mark the run as ended and return how many threads still execute its jobs.

        Up to the cap they do not count against the limit, so hung tools hurt only their own runs.
        """
        with self._ready:
            left = self._busy_by_run[run]
            if left:
                self._ended.add(run)
                with suppress(RuntimeError):  # the system allows no more threads: the jobs wait
                    for _ in range(min(left, len(self._jobs) - self._free)):
                        self._start_thread()
            return left

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Execute `fn` on a thread; the context has the run that submits it."""
        run = current.get()
        future: Future[T] = Future()
        with self._ready:
            if self._closed:
                raise RuntimeError("the service's threads are closed")
            self._jobs = deque(job for job in self._jobs if not job[0].cancelled())
            self._jobs.append((future, lambda: fn(*args, **kwargs), run))
            if self._free >= len(self._jobs):
                self._ready.notify()
                return future
            try:
                self._start_thread()
            except RuntimeError:  # the system allows no more threads: the caller fails
                self._jobs.pop()
                raise
        return future

    def _abandoned(self) -> int:
        return sum(self._busy_by_run[run] for run in self._ended)

    def _start_thread(self) -> None:
        """Start one more thread, if the limit and the cap allow it."""
        working = self._threads_alive - self._abandoned()
        if working >= self.limit or self._threads_alive >= _CAP * self.limit:
            return
        name = f"{self._name}-{next(self._numbers)}"
        threading.Thread(target=self._work, name=name, daemon=True).start()
        self._threads_alive += 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel waiting jobs and end idle threads; busy threads end with the process."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
            jobs, self._jobs = list(self._jobs), deque()
        for future, _, _ in jobs:
            future.cancel()

    def _work(self) -> None:
        while True:
            with self._ready:
                self._free += 1
                while not self._jobs:
                    if self._closed:
                        return
                    self._ready.wait()
                self._free -= 1
                future, job, run = self._jobs.popleft()
                if not future.set_running_or_notify_cancel():
                    continue
                self._busy_by_run[run] += 1
            try:
                result, error = job(), None
            except BaseException as raised:  # noqa: BLE001 - foreign code: its caller gets any exception
                result, error = None, raised
            del job
            with self._ready:
                self._busy_by_run[run] -= 1
                surplus = self._finish_job(run)
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
            del future, result, error, run
            if surplus:
                return

    def _finish_job(self, run: Current | None) -> bool:
        """Delete the counts of a run without jobs; return whether this thread is surplus."""
        if not self._busy_by_run[run]:
            del self._busy_by_run[run]
            self._ended.discard(run)
        surplus = self._threads_alive - self._abandoned() > self.limit
        self._threads_alive -= surplus
        return surplus


class RunThreads(DaemonThreads):
    """The threads of a service: `limit` for sync work, and a few for name lookups."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit, "watchkeeper-work")
        self._resolver = DaemonThreads(_RESOLVER_THREADS, "watchkeeper-names")

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Execute `fn` on the pool for sync work, or on the one for name lookups."""
        if fn in _NAME_LOOKUPS:
            return self._resolver.submit(fn, *args, **kwargs)
        return super().submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Close both pools."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        self._resolver.shutdown(wait, cancel_futures=cancel_futures)
