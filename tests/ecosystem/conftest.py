"""What the tests of the ecosystem share: one call that serves an agent and compares all reports."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.ecosystem.expected import Expected
from tests.ecosystem.reports import Run
from tests.ecosystem.served import agree_in_all_modes


class Serve(Protocol):
    """Build an agent for each mode and ask it; every report of each run agrees with this."""

    def __call__(
        self, build: Callable[[], Any], expected: Expected, /, **how: Any
    ) -> Awaitable[list[Run]]:
        """Give the runs, one for each mode."""


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serve an agent in every mode, with a store of its own."""
    # A machine that stands still for two seconds is no store that is away.
    monkeypatch.setattr("app.tasks.store.ANSWER_S", 30.0)
    monkeypatch.setattr("app.tasks.store._CALLER_BUSY_MS", 20_000)

    def call(build: Callable[[], Any], expected: Expected, /, **how: Any) -> Awaitable[list[Run]]:
        return agree_in_all_modes(build, expected, tmp_path, **how)

    return call
