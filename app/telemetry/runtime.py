"""Monitors the event loop: how late it is, and the line of code that blocks it.

A tool that blocks the loop delays every run. Code on the loop cannot report that; a thread can.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable

_TICK_S = 0.1
_BLOCKED_S = 0.5


class LoopMonitor:
    """Ticks on the loop. A daemon thread notices if a tick is overdue.

    Each tick calls `on_lag(seconds)` on the loop. The thread calls `on_blocked(seconds, where)`,
    once for each block of the loop.
    """

    def __init__(
        self, on_lag: Callable[[float], None], on_blocked: Callable[[float, str], None]
    ) -> None:
        self._on_lag = on_lag
        self._on_blocked = on_blocked
        self._last = time.monotonic()
        self._loop_thread = 0
        self._stopped = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start to monitor the running loop."""
        self._loop_thread = threading.get_ident()
        self._last = time.monotonic()
        self._schedule()
        threading.Thread(target=self._watch, name="watchkeeper-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop the monitor."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        self._on_lag(max(0.0, now - self._last - _TICK_S))
        self._last = now
        self._schedule()

    def _watch(self) -> None:
        reported = 0.0
        while not self._stopped.wait(_TICK_S):
            last = self._last
            late_s = time.monotonic() - last - _TICK_S
            if late_s > _BLOCKED_S and last != reported:
                reported = last
                self._on_blocked(late_s, self._where())

    def _where(self) -> str:
        """Return the line that the loop's thread executes, as `file:line function`."""
        frame = sys._current_frames().get(self._loop_thread)
        if frame is None:
            return "unknown"
        place = traceback.extract_stack(frame, limit=1)[0]
        return f"{place.filename}:{place.lineno} {place.name}"
