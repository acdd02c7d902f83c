"""The journal: one thread writes what all runs of the process add to the store.

It writes at once, everything that waits, in one transaction. What is added meanwhile is the next
batch. So a busy process commits less often than its runs add something, and no run waits for a
timer.
"""

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from app.runs.deadline import remaining
from app.runs.errors import RunError, StoreUnavailable
from app.tasks.backlog import Backlog, Batch, Claim, Write
from app.tasks.batches import BatchWriter, Outage
from app.tasks.store import Store
from app.tasks.tables import Tables

# Shortest and longest time between two attempts while the store is unavailable.
_RETRY_S = (0.1, 0.4)


class Journal:
    """One for each process. Its methods may be called from any thread.

    A claim's writes are written in their order. If the claim has lost its run, none is written.
    """

    def __init__(
        self,
        store: Store,
        tables: Tables,
        failed: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        """`failed` is called, on the journal's thread, with an error that ends the thread."""
        self._writer = BatchWriter(store, tables)
        self._failed = failed
        self._backlog = Backlog()
        # Guards the backlog, and wakes the thread.
        self._changed = threading.Condition()
        self._closing = False
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watchkeeper-journal", daemon=True)

    def start(self) -> None:
        """Start the thread. What was added before is written now."""
        self._thread.start()

    def add(self, claim: Claim, write: Write, size_bytes: int = 0) -> "Future[None]":
        """Add a write of a claim. Does not wait.

        The future is done as soon as the run may add more: a run with too many unwritten bytes
        has to wait for it. It fails like `flushed`.
        """
        with self._changed:
            if self._closing:
                return _unavailable()
            self._changed.notify()
            return self._backlog.add(claim, write, size_bytes, time.monotonic())

    def flushing(self, claim: Claim) -> "Future[None]":
        """Return a future for threads. It ends as `flushed` does, but without a time limit."""
        with self._changed:
            if self._closing:
                return _unavailable()
            self._changed.notify()
            return self._backlog.wait(claim, time.monotonic())

    async def flushed(self, claim: Claim) -> None:
        """Return once everything that the claim has added is committed, and the claim was valid.

        Raises HandedOver if another process has the run, Cancelled if it was cancelled, and
        NotStorable if the store refuses a write; what the claim added after that write is not
        written either. Raises StoreUnavailable at the run's deadline, or if the journal is closed.
        """
        remaining_s = remaining()
        try:
            async with asyncio.timeout(None if math.isinf(remaining_s) else remaining_s):
                await asyncio.wrap_future(self.flushing(claim))
        except TimeoutError as late:
            raise StoreUnavailable from late

    def delete(self, claim: Claim) -> None:
        """Delete what is known of a claim whose attempt has ended. Its writes stay."""
        with self._changed:
            self._backlog.delete(claim)

    def age_s(self) -> float:
        """Return the age of the oldest unwritten entry; 0 if all is written."""
        with self._changed:
            return max(0.0, time.monotonic() - self._backlog.oldest())

    def close(self, timeout_s: float) -> None:
        """Write what is left, and end the thread. Blocks, up to the timeout.

        Those who wait for what is not written then receive StoreUnavailable.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._give_up()

    def _give_up(self) -> None:
        self._given_up.set()
        with self._changed:
            self._closing = True
            self._backlog.fail(StoreUnavailable())

    def _work(self) -> None:
        try:
            while batch := self._next():
                self._write(batch)
        except Exception as wrong:  # noqa: BLE001 - those who wait are informed below
            self._failed(wrong)
        finally:
            self._writer.close()
            self._give_up()

    def _next(self) -> Batch:
        """Wait for entries and take them. Returns nothing once the journal is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._backlog or self._closing)
            return self._backlog.take()

    def _write(self, batch: Batch) -> None:
        """Write a batch. What the store does not take waits a moment for the next one."""
        try:
            self._writer.write(batch, self._settle)
        except Outage:
            with self._changed:
                self._backlog.put_back()
            self._given_up.wait(random.uniform(*_RETRY_S))

    def _settle(self, claim: Claim, error: RunError | None) -> None:
        with self._changed:
            self._backlog.settle(claim, error)


def _unavailable() -> "Future[None]":
    future = Future[None]()
    future.set_exception(StoreUnavailable())
    return future
