"""Threads for work that cannot be cancelled, which delays no other work."""

import asyncio
import gc
import threading
import time
import weakref

import pytest

from app.runs.deadline import Current, current
from app.runs.threads import DaemonThreads, RunThreads
from tests.runs.pools import HUNG, LIMIT, a_run, eventually, for_run, hung, named


def test_results_and_exceptions_come_back() -> None:
    """What a job returns or raises reaches its caller."""
    threads = DaemonThreads(2, "t-results")
    assert threads.submit(max, 3, 5).result(30) == 5
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 1, 0).result(30)


@pytest.mark.waits
def test_never_more_threads_than_the_limit() -> None:
    """However many jobs there are, no more threads than the limit execute."""
    threads = DaemonThreads(LIMIT, "t-cap")
    with hung(threads, LIMIT * 5) as futures:
        assert threads.busy == LIMIT
        assert named("t-cap") == LIMIT
    for future in futures:
        assert future.result(30) is True
    assert named("t-cap") == LIMIT


def test_threads_are_used_again() -> None:
    """One job after the other needs one thread."""
    threads = DaemonThreads(LIMIT, "t-again")
    for number in range(20):
        assert threads.submit(abs, -number).result(30) == number
        eventually(lambda: threads._free == 1)
    assert named("t-again") == 1


def test_jobs_wait_in_order() -> None:
    """Jobs that wait for a thread execute in the order of their arrival."""
    threads = DaemonThreads(1, "t-order")
    seen: list[int] = []
    with hung(threads, 1):
        futures = [threads.submit(seen.append, number) for number in range(10)]
    for future in futures:
        future.result(30)
    assert seen == list(range(10))


def test_waiting_job_can_be_cancelled() -> None:
    """A job that is cancelled while it waits never executes, and the next one does."""
    threads = DaemonThreads(1, "t-cancel")
    ran: list[str] = []
    with hung(threads, 1):
        first, second = threads.submit(ran.append, "first"), threads.submit(ran.append, "second")
        assert first.cancel()
    second.result(30)
    assert ran == ["second"]


def test_running_job_cannot_be_cancelled() -> None:
    """An executing job goes on, and is counted as executing."""
    threads = DaemonThreads(1, "t-running")
    with hung(threads, 1) as (future,):
        assert not future.cancel()
        assert threads.busy_for(HUNG) == 1


def test_cancelled_waiting_job_is_freed() -> None:
    """While every thread hangs, cancelled jobs do not pile up in memory."""

    class Payload:
        pass

    threads = DaemonThreads(1, "t-pile")
    with hung(threads, 1):
        payload = Payload()
        reference = weakref.ref(payload)
        threads.submit(id, payload).cancel()
        del payload
        threads.submit(abs, 1).cancel()  # the next job may do the cleaning
        gc.collect()
        assert reference() is None


def test_finished_job_is_freed() -> None:
    """An idle thread keeps no object of its last job alive."""

    class Payload:
        pass

    threads = DaemonThreads(1, "t-idle")
    payload = Payload()
    reference = weakref.ref(payload)
    assert threads.submit(lambda p: [p], payload).result(30)
    del payload
    eventually(lambda: threads._free == 1)
    gc.collect()
    assert reference() is None


def test_work_is_counted_for_each_run() -> None:
    """The number of threads of a run is exact, from its start to its end."""
    threads, a, b = DaemonThreads(LIMIT, "t-count"), a_run("a"), a_run("b")
    with hung(threads, 1, a), hung(threads, 2, b):
        assert (threads.busy_for(a), threads.busy_for(b)) == (1, 2)
        assert threads.busy_for(a_run("nobody")) == 0
        assert threads.busy == 3
    eventually(lambda: threads.busy == 0)
    assert (threads.busy_for(a), threads.busy_for(b)) == (0, 0)


def test_work_is_counted_for_each_attempt() -> None:
    """A thread that an ended attempt left behind is not counted for the next one of its run."""
    threads, first, second = DaemonThreads(1, "t-attempts"), a_run("run"), a_run("run")
    with hung(threads, 1, first):
        assert threads.abandon(first) == 1
        with hung(threads, 1, second):
            assert (threads.busy_for(first), threads.busy_for(second)) == (1, 1)
            assert threads.abandoned == 1
    eventually(lambda: threads.busy == 0)
    assert threads.abandoned == 0


def test_waiting_job_is_not_counted() -> None:
    """A run's jobs that have found no thread are not counted as abandoned."""
    threads, b = DaemonThreads(1, "t-waits"), a_run("b")
    with hung(threads, 1, a_run("a")):
        waiting = for_run(threads, b, abs, 1)
        assert threads.busy_for(b) == 0
        waiting.cancel()


def test_job_is_not_counted_once_its_result_is_there() -> None:
    """Once a job has its result, none of its work is counted."""
    threads, run = DaemonThreads(LIMIT, "t-left"), a_run("run")
    for _ in range(200):
        for_run(threads, run, abs, 1).result(30)
        assert threads.busy_for(run) == 0


async def test_run_is_known_from_the_context() -> None:
    """Work that asyncio sends to a thread is counted for the run that sent it."""
    threads = RunThreads(LIMIT)
    asyncio.get_running_loop().set_default_executor(threads)
    door, a, b = threading.Event(), a_run("a"), a_run("b")

    async def work(run: Current) -> None:
        current.set(run)
        await asyncio.to_thread(door.wait)

    tasks = [asyncio.create_task(work(run)) for run in (a, a, b)]
    async with asyncio.timeout(30):
        while threads.busy < 3:  # noqa: ASYNC110 - threads offer no event
            await asyncio.sleep(0.002)
    assert (threads.busy_for(a), threads.busy_for(b)) == (2, 1)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert (threads.busy_for(a), threads.busy_for(b)) == (2, 1), "threads go on"
    door.set()


@pytest.mark.waits
async def test_names_are_looked_up_while_every_thread_hangs() -> None:
    """With twice the pool of hung jobs, asyncio's own loop still resolves names at once."""
    loop = asyncio.get_running_loop()
    threads = RunThreads(LIMIT)
    loop.set_default_executor(threads)
    with hung(threads, LIMIT * 2):
        began = time.monotonic()
        async with asyncio.timeout(30):
            for _ in range(20):
                await loop.getaddrinfo("127.0.0.1", 80)
                await loop.getnameinfo(("127.0.0.1", 80))
        assert time.monotonic() - began < 30
        assert threads.busy == LIMIT, "lookups are not the work of a run"


async def test_hung_jobs_do_not_slow_the_loop() -> None:
    """With twice the pool of hung jobs, the loop turns as before."""
    threads = RunThreads(LIMIT)
    asyncio.get_running_loop().set_default_executor(threads)
    with hung(threads, LIMIT * 2):
        began = time.monotonic()
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert time.monotonic() - began < 30
