"""What a run said and did, numbered, for whoever follows it: bounded, and held by nobody.

Readers have a cursor each. One that is too slow misses what is no longer kept and is told so; it
never holds the run. Entries may be added from any thread.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MOST_ENTRIES = 4_000
_MOST_BYTES = 512_000
# What an entry costs besides its text.
_ENTRY_BYTES = 100


@dataclass(frozen=True, slots=True)
class Entry:
    """One event; ids count from 1 without holes."""

    id: int
    name: str
    data: Mapping[str, Any]


class Ring:
    """The last entries of one run."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.closed = False
        self._loop = loop
        self._entries: deque[tuple[Entry, int]] = deque()
        self._bytes = 0
        self._last_id = 0
        self._lock = threading.Lock()
        self._waiting: set[asyncio.Future[None]] = set()

    def add(self, name: str, **data: Any) -> None:
        """Append an event; the oldest ones give way, the newest is kept however long it is."""
        self._add(name, data, trims=True)

    def finish(self, *names: str) -> None:
        """Append the last events, which take the place of no other, and close."""
        for name in names:
            self._add(name, {}, trims=False)
        self.closed = True
        self._wake()

    def _add(self, name: str, data: Mapping[str, Any], *, trims: bool) -> None:
        texts = [value for value in data.values() if isinstance(value, str)]
        size = _ENTRY_BYTES + sum(len(text.encode("utf-8", "replace")) for text in texts)
        with self._lock:
            self._last_id += 1
            self._entries.append((Entry(self._last_id, name, data), size))
            self._bytes += size
            while trims and len(self._entries) > 1 and self._is_full():
                self._bytes -= self._entries.popleft()[1]
        self._wake()

    @property
    def last_id(self) -> int:
        """The id of the newest entry."""
        return self._last_id

    def keeps(self, number: int) -> bool:
        """Whether the entry of that id, and so every later one, is still kept."""
        with self._lock:
            return bool(self._entries) and self._entries[0][0].id <= number

    def since(self, after: int) -> list[Entry]:
        """The entries after that id which are still kept, oldest first."""
        with self._lock:
            if not self._entries or after >= self._last_id:
                return []
            skipped = max(0, after - self._entries[0][0].id + 1)
            return [self._entries[at][0] for at in range(skipped, len(self._entries))]

    async def changed(self, after: int, timeout_s: float) -> None:
        """Wait until there is something after that id, or nothing more will come."""
        if self.closed or after < self._last_id:
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting.add(waiter)
        try:
            if after >= self._last_id and not self.closed:
                await asyncio.wait({waiter}, timeout=timeout_s)
        finally:
            self._waiting.discard(waiter)

    def _is_full(self) -> bool:
        return self._bytes > _MOST_BYTES or len(self._entries) > _MOST_ENTRIES

    def _wake(self) -> None:
        if not self._waiting:
            return
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._wake_here()
        else:
            self._loop.call_soon_threadsafe(self._wake_here)

    def _wake_here(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
