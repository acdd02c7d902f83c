"""Writes log lines without ever making the event loop wait for whoever reads them.

A pipe that nobody reads blocks its writer; here a thread is blocked, lines beyond a bound are
dropped, and the drops are counted.
"""

import queue
import threading
from collections.abc import Callable
from typing import TextIO

_MOST_LINES = 10_000


class LineWriter:
    """A file-like object for loggers. A line may be written in a signal handler, too."""

    def __init__(self, stream: TextIO, on_drop: Callable[[], None] = lambda: None) -> None:
        self.on_drop = on_drop
        self._stream = stream
        # Unlike Queue its `put` may be interrupted by another; an Event in it asks to be set.
        self._lines: queue.SimpleQueue[str | threading.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="watchkeeper-log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue a line, or part of one; never waits."""
        if self._lines.qsize() < _MOST_LINES:
            self._lines.put(line)
        else:
            self.on_drop()

    def flush(self) -> None:
        """Nothing to do: the thread flushes when it has nothing left to write."""

    def written(self, timeout_s: float) -> bool:
        """Wait until what was queued before is written."""
        done = threading.Event()
        self._lines.put(done)
        return done.wait(timeout_s)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, for at most that long, and stop."""
        self._lines.put(None)
        self._thread.join(timeout_s)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                if isinstance(line, str):
                    self._stream.write(line)
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):  # a closed or broken stream
                self.on_drop()
            if isinstance(line, threading.Event):
                line.set()
