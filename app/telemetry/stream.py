"""Writes log lines so that the event loop never waits for the reader of the log.

A pipe that nobody reads blocks its writer. Here it blocks a thread; lines beyond a bound are
dropped and counted.
"""

import queue
import threading
from collections.abc import Callable
from typing import TextIO

_MOST_LINES = 10_000


class LineWriter:
    """A file-like object for loggers. Signal handlers may write too."""

    def __init__(self, stream: TextIO, on_drop: Callable[[], None] = lambda: None) -> None:
        self.on_drop = on_drop
        self._stream = stream
        # Its `put` is reentrant, unlike that of Queue. The thread sets an Event that it takes.
        self._lines: queue.SimpleQueue[str | threading.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="watchkeeper-log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue a line, or a part of a line. Never waits."""
        if self._lines.qsize() < _MOST_LINES:
            self._lines.put(line)
        else:
            self.on_drop()

    def flush(self) -> None:
        """Do nothing: the thread flushes once the queue is empty."""

    def written(self, timeout_s: float) -> bool:
        """Wait until the thread has written the lines queued so far."""
        done = threading.Event()
        self._lines.put(done)
        return done.wait(timeout_s)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write the queued lines, for at most that long, and stop."""
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
