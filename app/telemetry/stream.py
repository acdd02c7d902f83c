"""Writes log lines without ever making the event loop wait for whoever reads them.

A pipe that nobody reads blocks its writer; here a thread is blocked, lines beyond a bound are
dropped, and the drops are counted.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import TextIO

_MOST_LINES = 10_000


class LineWriter:
    """A file-like object for loggers. `close` waits a moment for what is queued."""

    def __init__(self, stream: TextIO, on_drop: Callable[[], None] = lambda: None) -> None:
        self.on_drop = on_drop
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(_MOST_LINES)
        self._thread = threading.Thread(target=self._write, name="watchkeeper-log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue a line, or part of one; never waits."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.on_drop()

    def flush(self) -> None:
        """Nothing to do: the thread flushes when it has nothing left to write."""

    def written(self, within_s: float) -> bool:
        """Wait until nothing is queued."""
        end = time.monotonic() + within_s
        while self._lines.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.005)
        return not self._lines.unfinished_tasks

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, for at most that long."""
        try:
            self._lines.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line)
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):  # a closed or broken stream
                self.on_drop()
            finally:
                self._lines.task_done()
