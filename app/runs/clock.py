"""The clock of the core, as a value, so that a test can run an hour in a moment.

Its `monotonic` must advance with the event loop's own time, which the timers of a run follow.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Where a run reads the time: `monotonic` for durations and deadlines, `wall` for dates."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time

    def since(self, date: float) -> float:
        """The moment on `monotonic` of a date in the past; a date in the future counts as now."""
        return self.monotonic() - max(0.0, self.wall() - date)


SYSTEM = Clock()
