"""The numbered events of a run, for its readers: bounded, and never blocked by a reader.

Each reader has its own cursor. A slow reader misses evicted entries and receives a gap instead; it
never delays the run. Entries may be added from any thread.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MAX_ENTRIES = 4_000
_MAX_BYTES = 512_000
# The size of an entry besides its text.
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
        """Append an event and evict the oldest ones; the newest stays, however long it is."""
        self._add(name, data, evicts=True)

    def finish(self, *names: str) -> None:
        """Append the last events without evicting others, and close."""
        for name in names:
            self._add(name, {}, evicts=False)
        self.closed = True
        self._wake()

    def _add(self, name: str, data: Mapping[str, Any], *, evicts: bool) -> None:
        texts = [value for value in data.values() if isinstance(value, str)]
        size = _ENTRY_BYTES + sum(len(text.encode("utf-8", "replace")) for text in texts)
        with self._lock:
            self._last_id += 1
            self._entries.append((Entry(self._last_id, name, data), size))
            self._bytes += size
            while evicts and len(self._entries) > 1 and self._is_full():
                self._bytes -= self._entries.popleft()[1]
        self._wake()

    @property
    def last_id(self) -> int:
        """The id of the newest entry."""
        return self._last_id

    def has(self, number: int) -> bool:
        """Whether the ring still has the entry of that id, and so every later one."""
        with self._lock:
            return bool(self._entries) and self._entries[0][0].id <= number

    def since(self, after: int) -> list[Entry]:
        """The entries after that id that are not evicted, oldest first."""
        with self._lock:
            if not self._entries or after >= self._last_id:
                return []
            skipped = max(0, after - self._entries[0][0].id + 1)
            return [self._entries[at][0] for at in range(skipped, len(self._entries))]

    async def changed(self, after: int, timeout_s: float) -> None:
        """Wait until there is an entry after that id, or the ring is closed."""
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
        return self._bytes > _MAX_BYTES or len(self._entries) > _MAX_ENTRIES

    def _wake(self) -> None:
        if not self._waiting:
            return
        try:
            on_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            on_loop = False
        if on_loop:
            self._wake_on_loop()
        else:
            self._loop.call_soon_threadsafe(self._wake_on_loop)

    def _wake_on_loop(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
