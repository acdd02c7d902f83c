"""The fast tests: those of a few rooms, but for what is marked `waits`. They run in a minute.

    python -m tests.fast -k admission

A fast test waits for nothing outside of it. One that opens a socket, starts a process or waits for
the clock fails and says so, wherever it runs: nobody has to keep a list.
"""

import os
import selectors
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import pytest

ROOMS = ("agents", "alerts", "dashboards", "runs", "test_settings.py")
# A shorter pause is a step of polling, and no wait.
PAUSE_S = 0.02
_OUTSIDE = {
    "os.fork": "it forks",
    "os.posix_spawn": "it starts a process",
    "socket.bind": "it opens a socket",
    "socket.connect": "it opens a socket",
    "socket.getaddrinfo": "it resolves a name",
    "subprocess.Popen": "it starts a process",
}
_TESTS = Path(__file__).parent


class Rule:
    """Fails a fast test that waits. Python reports what a test does by its audit hooks."""

    def __init__(self) -> None:
        self._waits: list[str] | None = None

    def install(self) -> None:
        """Watch this process from now on; audit hooks stay as long as it."""
        rule, select, sleep = self, selectors.DefaultSelector.select, time.sleep

        def selects(self: Any, timeout: float | None = None) -> Any:
            ready = select(self, timeout)
            if timeout is not None and timeout >= PAUSE_S and not ready:
                rule.note(f"the event loop waits {timeout:.3g} s for the clock")
            return ready

        def sleeps(seconds: float | SupportsIndex) -> None:
            if float(seconds) >= PAUSE_S:
                rule.note(f"it sleeps {float(seconds):.3g} s")
            sleep(seconds)

        selectors.DefaultSelector.select = selects  # type: ignore[method-assign]
        time.sleep = sleeps
        sys.addaudithook(self._hear)

    def note(self, wait: str) -> None:
        """Remember what the present test waited for, and the line of ours that asked for it."""
        if self._waits is not None:
            self._waits.append(f"{wait}{_where()}")

    def _hear(self, event: str, _: tuple[Any, ...]) -> None:
        if event in _OUTSIDE:
            self.note(_OUTSIDE[event])

    def _held(self, item: pytest.Item) -> Generator[None, object, object]:
        if item.get_closest_marker("fast") is None:
            return (yield)
        waits: list[str] = []
        self._waits = waits
        try:
            result = yield
        finally:
            self._waits = None
        if waits:
            pytest.fail(f"A fast test waits: {waits[0]}. Mark it `waits`.", pytrace=False)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Hold the fixtures of a fast test to the rule."""
        return (yield from self._held(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Hold a fast test to the rule."""
        return (yield from self._held(item))


def mark(item: pytest.Item) -> None:
    """Mark a test as fast where its room and its own marks make it so."""
    if item.path.is_relative_to(_TESTS):
        room = item.path.relative_to(_TESTS).parts[0]
        if room in ROOMS and item.get_closest_marker("waits") is None:
            item.add_marker(pytest.mark.fast)


def _where() -> str:
    """The innermost line of the tests that is at work."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_TESTS) and file != Path(__file__):
            return f", at tests/{file.relative_to(_TESTS)}:{frame.f_lineno}"
    return ""


def main(options: Sequence[str]) -> None:
    """Become pytest, on the fast tests."""
    rooms = [str(_TESTS / room) for room in ROOMS]
    command = ["-m", "pytest", "-n", "2", "--dist", "loadfile", "-m", "fast", *options, *rooms]
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main(sys.argv[1:])
