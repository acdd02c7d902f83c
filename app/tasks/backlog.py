"""The writes of runs that no transaction has yet, and which of them the next one takes.

Each claim of a run has its own queue, so one run cannot delay another for long, and none reorders
its writes. The lock of the journal guards all of it.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import sqlalchemy as sa

from app.runs.errors import NotStorable, RunError

# At most so much in one transaction. A larger write has a transaction of its own.
BATCH_WRITES, BATCH_BYTES = 500, 1_000_000
# A run with more unwritten bytes has to wait before it adds more.
RUN_BYTES = 4_000_000

# A statement, or a function that executes statements. It may be executed twice: if a connection
# breaks during a commit, nobody knows whether the store has the transaction.
Write: TypeAlias = sa.Executable | Callable[[sa.Connection], object]


class Claim(Protocol):
    """A process's claim of a run. It is hashable."""

    @property
    def task_id(self) -> str:
        """The id of the run."""
        ...

    @property
    def token(self) -> str:
        """The claim token. Each attempt at a run has another."""
        ...

    @property
    def process(self) -> str:
        """The process that has, or had, the run."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A write of a claim, or (without one) a waiter for all writes before it."""

    added_at: float
    write: Write | None = None
    size_bytes: int = 0
    waiter: "Future[None] | None" = None


# The entries of each claim, in their order.
Batch: TypeAlias = Mapping[Claim, Sequence[Entry]]


@dataclass(slots=True)
class _Queue:
    """The entries of a claim. `unwritten_bytes` counts those of the present batch too."""

    entries: deque[Entry] = field(default_factory=deque)
    unwritten_bytes: int = 0
    # They wait until the run may add more.
    blocked: list["Future[None]"] = field(default_factory=list)
    is_refused: bool = False


class Backlog:
    """The queues of all claims."""

    def __init__(self) -> None:
        self._queues: dict[Claim, _Queue] = {}
        self._batch: dict[Claim, Sequence[Entry]] = {}

    def __bool__(self) -> bool:
        """Whether a batch can be taken."""
        return any(queue.entries for queue in self._queues.values())

    def add(self, claim: Claim, write: Write, size_bytes: int, now: float) -> "Future[None]":
        """Add a write. The future is done once the claim may add more, or has failed."""
        queue, room = self._queues.setdefault(claim, _Queue()), Future[None]()
        if queue.is_refused:
            room.set_exception(NotStorable())
            return room
        queue.entries.append(Entry(now, write, size_bytes))
        queue.unwritten_bytes += size_bytes
        if queue.unwritten_bytes > RUN_BYTES:
            queue.blocked.append(room)
        else:
            room.set_result(None)
        return room

    def wait(self, claim: Claim, now: float) -> "Future[None]":
        """Return a future that is done once all earlier writes of the claim are settled."""
        queue, waiter = self._queues.setdefault(claim, _Queue()), Future[None]()
        if queue.is_refused:
            queue.is_refused = False
            waiter.set_exception(NotStorable())
            self._tidy(claim)
        else:
            queue.entries.append(Entry(now, waiter=waiter))
        return waiter

    def take(self) -> Batch:
        """Take the next batch; `settle` ends it for each of its claims.

        Claims take turns. A large write is taken alone, when it is the first in turn.
        """
        room = _Room()
        for claim, queue in list(self._queues.items()):
            taken = []
            while queue.entries and room.take(queue.entries[0]):
                taken.append(queue.entries.popleft())
            if taken:
                self._batch[claim] = taken
                self._queues[claim] = self._queues.pop(claim)  # the last in turn now
        return dict(self._batch)

    def settle(self, claim: Claim, error: RunError | None) -> None:
        """End the batch for one claim: report the error, or that all is written, to its waiters."""
        if claim not in self._batch:  # the journal has been closed meanwhile
            return
        queue, entries = self._queues[claim], list(self._batch.pop(claim))
        if isinstance(error, NotStorable):
            # What follows a refused write is refused too, until a waiter knows it.
            while queue.entries and not any(entry.waiter for entry in entries):
                entries.append(queue.entries.popleft())
            queue.is_refused = not any(entry.waiter for entry in entries)
        queue.unwritten_bytes -= sum(entry.size_bytes for entry in entries)
        _report((entry.waiter for entry in entries), error)
        if error is not None or queue.unwritten_bytes <= RUN_BYTES:
            _report(queue.blocked, error)
            queue.blocked.clear()
        self._tidy(claim)

    def put_back(self) -> None:
        """Let the next batch have what is not settled of this one."""
        for claim, entries in self._batch.items():
            self._queues[claim].entries.extendleft(reversed(entries))
        self._batch.clear()

    def fail(self, error: RunError) -> None:
        """Report an error to every waiter: nothing is written any more."""
        for claim, queue in self._queues.items():
            entries = (*self._batch.get(claim, ()), *queue.entries)
            _report((entry.waiter for entry in entries), error)
            _report(queue.blocked, error)
        self._queues.clear()
        self._batch.clear()

    def delete(self, claim: Claim) -> None:
        """Delete a refusal that nobody has asked for. The attempt has ended."""
        if claim in self._queues:
            self._queues[claim].is_refused = False
            self._tidy(claim)

    def oldest(self) -> float:
        """Return when the oldest unwritten entry was added; infinity for none."""
        queued = (queue.entries[0] for queue in self._queues.values() if queue.entries)
        taken = (entries[0] for entries in self._batch.values())
        return min((entry.added_at for entry in (*queued, *taken)), default=math.inf)

    def _tidy(self, claim: Claim) -> None:
        queue = self._queues[claim]
        if not (queue.entries or queue.is_refused or queue.blocked or claim in self._batch):
            del self._queues[claim]


@dataclass(slots=True)
class _Room:
    """What a batch may still take."""

    writes: int = BATCH_WRITES
    size_bytes: int = BATCH_BYTES
    has_large: bool = False

    def take(self, entry: Entry) -> bool:
        """Take an entry, if it fits. A waiter always does."""
        if entry.write is None:
            return True
        is_large, is_empty = entry.size_bytes > BATCH_BYTES, self.writes == BATCH_WRITES
        fits = is_empty if is_large else self.writes > 0 and entry.size_bytes <= self.size_bytes
        if self.has_large or not fits:
            return False
        self.writes -= 1
        self.size_bytes -= entry.size_bytes
        self.has_large = is_large
        return True


def _report(waiters: Iterable["Future[None] | None"], error: RunError | None) -> None:
    """Give each waiter the result, unless its caller has cancelled it."""
    for waiter in waiters:
        if waiter is None or not waiter.set_running_or_notify_cancel():
            continue
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
