"""The end of a thread pool: nothing waits, nothing hangs, nothing blocks the exit."""

import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest

from app.runs.threads import DaemonThreads, RunThreads
from tests.runs.pools import eventually, hung, named


def test_shutdown_cancels_waiting_jobs() -> None:
    """Shutdown cancels waiting jobs and does not wait for executing ones."""
    threads = DaemonThreads(1, "t-shut")
    with hung(threads, 3) as (running, *waiting):
        began = time.monotonic()
        threads.shutdown(wait=True)
        assert time.monotonic() - began < 30
        assert not running.done()
        for future in waiting:
            with pytest.raises(CancelledError):
                future.result(30)


def test_shutdown_ends_idle_threads() -> None:
    """After shutdown no idle thread is left."""
    threads = DaemonThreads(2, "t-idle-go")
    threads.submit(abs, 1).result(30)
    threads.shutdown()
    eventually(lambda: named("t-idle-go") == 0)


@pytest.mark.waits
async def test_shutdown_ends_the_lookup_threads() -> None:
    """After shutdown no thread for name lookups is left."""
    loop = asyncio.get_running_loop()
    before = set(threading.enumerate())
    threads = RunThreads(2)
    loop.set_default_executor(threads)
    await loop.getaddrinfo("127.0.0.1", 80)
    mine = set(threading.enumerate()) - before
    assert mine
    threads.shutdown()
    async with asyncio.timeout(30):
        while any(thread.is_alive() for thread in mine):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_job_after_shutdown_is_refused() -> None:
    """A job after shutdown is refused or executed, but never left hanging."""
    threads = DaemonThreads(2, "t-late")
    threads.submit(abs, 1).result(30)
    eventually(lambda: threads.busy == 0)
    threads.shutdown()
    eventually(lambda: named("t-late") == 0)
    try:
        late = threads.submit(abs, -1)
    except RuntimeError:
        return
    assert late.result(30) == 1


def test_thread_that_cannot_be_started_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system gives no thread the caller gets the error, and later jobs still find one."""

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads = DaemonThreads(1, "t-refused")
    ran: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError):
            threads.submit(ran.append, "refused")
    threads.submit(ran.append, "later").result(30)
    assert ran == ["later"]


EXIT = """
import asyncio, threading, time
from app.runs.threads import RunThreads
async def main():
    asyncio.get_running_loop().set_default_executor(RunThreads(2))
    for _ in range(4):
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
    await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
asyncio.run(main())
print("over")
"""


@pytest.mark.waits
def test_hung_threads_do_not_block_the_exit() -> None:
    """A process whose threads hang ends at once, with its exit code."""
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=90, check=False
    )
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, "over", "")
    assert time.monotonic() - began < 50
