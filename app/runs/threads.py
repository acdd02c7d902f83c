"""Threads for work that cannot be cancelled: sync tools, sync models and sync graph nodes.

asyncio's default pool has a handful of threads, waits for them at exit and lends them to name
lookups too, so a few hung tools stop everything. These are daemon threads with a cap of their
own; name lookups have a small pool to themselves; and each job remembers its run, so that what a
run left behind can be counted.
"""

import itertools
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from app.runs.deadline import current

P = ParamSpec("P")
T = TypeVar("T")

_RESOLVER_THREADS = 4
_NAME_LOOKUPS: tuple[object, ...] = (socket.getaddrinfo, socket.getnameinfo)


class DaemonThreads(ThreadPoolExecutor):
    """An executor whose threads never hold up the exit of the process.

    A job that finds no free thread waits in order; a waiting job can be cancelled, a running one
    cannot. It is a ThreadPoolExecutor because `loop.set_default_executor` asks for one.
    """

    def __init__(self, limit: int, name: str) -> None:
        super().__init__(max_workers=1)  # its own threads are never started
        self.limit = limit
        self._name = name
        self._numbers = itertools.count(1)
        self._free = 0
        self._threads_alive = 0
        self._closed = False
        self._jobs: deque[tuple[Future[Any], Callable[[], Any], str | None]] = deque()
        self._ready = threading.Condition()
        self._busy_by_run: Counter[str | None] = Counter()

    @property
    def busy(self) -> int:
        """How many threads are at work."""
        with self._ready:
            return self._busy_by_run.total()

    def busy_besides(self, run_ids: Container[str | None]) -> int:
        """How many threads are at work for none of these runs."""
        with self._ready:
            return sum(n for run_id, n in self._busy_by_run.items() if run_id not in run_ids)

    def busy_for(self, run_id: str) -> int:
        """How many threads are at work for one run."""
        with self._ready:
            return self._busy_by_run[run_id]

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` on a thread; the run that submits it is read from the context."""
        run = current.get()
        run_id = run.run_id if run else None
        future: Future[T] = Future()
        with self._ready:
            self._jobs.append((future, lambda: fn(*args, **kwargs), run_id))
            if self._free >= len(self._jobs) or self._threads_alive >= self.limit:
                self._ready.notify()
            else:
                self._threads_alive += 1
                name = f"{self._name}-{next(self._numbers)}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Drop what waits and let idle threads go; what runs is left to end with the process."""
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
                future, job, run_id = self._jobs.popleft()
                if not future.set_running_or_notify_cancel():
                    continue
                self._busy_by_run[run_id] += 1
            try:
                result, error = job(), None
            except BaseException as raised:  # noqa: BLE001 - foreign code: all of it goes to its caller
                result, error = None, raised
            del job
            with self._ready:
                self._busy_by_run[run_id] -= 1
                if not self._busy_by_run[run_id]:
                    del self._busy_by_run[run_id]
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
            del future, result, error


class RunThreads(DaemonThreads):
    """The threads of a service: `limit` for sync work, and a few kept for name lookups."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit, "watchkeeper-work")
        self._resolver = DaemonThreads(_RESOLVER_THREADS, "watchkeeper-names")

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` on a thread of the pool that is meant for it."""
        if fn in _NAME_LOOKUPS:
            return self._resolver.submit(fn, *args, **kwargs)
        return super().submit(fn, *args, **kwargs)
