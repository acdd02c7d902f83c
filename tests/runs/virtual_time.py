"""An event loop whose time passes only while its tasks wait, so that an hour takes no time.

A module asks for it: `pytestmark = pytest.mark.virtual_time`. A test that uses threads is marked
`threads` and keeps real time, for a thread's work takes none of the virtual.
"""

import asyncio
import selectors
import time
from collections.abc import Mapping
from typing import Any

from app.runs.clock import Clock


class _Selector(selectors.DefaultSelector):
    """Advances its time by a bounded wait in which nothing would become ready."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1024.0  # the same on every machine, and so is every rounding

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; wait for real only where nothing bounds the wait."""
        if timeout is None:
            return super().select(None)
        ready = super().select(0)
        if not ready:
            self.now_s += max(0.0, timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop with the time of its selector."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """The loop's own time, in seconds."""
        return self._virtual.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass as if the present callback had held the loop for so long."""
        self._virtual.now_s += seconds


def clock() -> Clock:
    """The clock of the running loop, whose wall time advances with it."""
    loop = asyncio.get_running_loop()
    began_s, date = loop.time(), time.time()
    return Clock(loop.time, lambda: date + loop.time() - began_s)


def advance(seconds: float) -> None:
    """Hold the running loop for so long, in its own time."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop), "mark the test `virtual_time`"
    loop.advance(seconds)


def factories(virtual: bool) -> Mapping[str, Any]:
    """The loop of a test, as pytest-asyncio takes it."""
    return {"virtual": VirtualTimeLoop} if virtual else {"real": asyncio.new_event_loop}
