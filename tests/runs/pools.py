"""What the tests of the thread pool share: jobs that hang, and waiting with a bound."""

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from app.runs.deadline import Current, current
from app.runs.threads import DaemonThreads

LIMIT = 4


def a_run(run_id: str) -> Current:
    """A run, or one attempt at it, for an hour."""
    return Current(run_id, time.monotonic() + 3600)


HUNG = a_run("hung")


@contextmanager
def hung(threads: DaemonThreads, jobs: int, run: Current = HUNG) -> Iterator[list[Future[Any]]]:
    """So many jobs of one run that end only when the block does; those that can have begun."""
    door = threading.Event()
    futures = [for_run(threads, run, door.wait) for _ in range(jobs)]
    try:
        eventually(lambda: threads.busy_for(run) == min(jobs, threads.limit))
        yield futures
    finally:
        door.set()


def for_run(
    threads: DaemonThreads, run: Current, fn: Callable[..., Any], *args: Any
) -> Future[Any]:
    """Submit on behalf of a run."""
    context = contextvars.copy_context()
    context.run(current.set, run)
    return context.run(threads.submit, fn, *args)


def eventually(claim: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until the claim is true, for a bounded time."""
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


def named(prefix: str) -> int:
    """How many threads there are whose names begin so."""
    return sum(thread.name.startswith(prefix) for thread in threading.enumerate())
