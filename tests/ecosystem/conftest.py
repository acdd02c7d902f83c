"""What the tests of the ecosystem share: one call that serves an agent, and the record of rows."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.ecosystem.expected import Expected
from tests.ecosystem.reports import Run
from tests.ecosystem.served import agree_in_all_modes
from tests.ecosystem.serves import MARK, RECORD, Row, as_record, declared, recorded, row_of


class Serve(Protocol):
    """Build an agent for each mode and ask it; every report of each run agrees with this."""

    def __call__(
        self, build: Callable[[], Any], expected: Expected, /, **how: Any
    ) -> Awaitable[list[Run]]:
        """Give the runs, one for each mode."""


@pytest.fixture(autouse=True)
def blockbuster() -> None:
    """Foreign code may block here; that ours does not is held in all other tests.

    Clients read their own version when they are first used, and a shell waits for its commands.
    """


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serve an agent in every mode, with a store of its own."""
    # A machine that stands still for two seconds is no store that is away.
    monkeypatch.setattr("app.tasks.store.ANSWER_S", 30.0)
    monkeypatch.setattr("app.tasks.store._CALLER_BUSY_MS", 20_000)

    def call(build: Callable[[], Any], expected: Expected, /, **how: Any) -> Awaitable[list[Run]]:
        return agree_in_all_modes(build, expected, tmp_path, **how)

    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test carries its rows, from the process that runs it to the one that records them."""
    for item in items:
        name = getattr(item, "originalname", item.name)
        for mark in item.iter_markers(MARK):
            item.user_properties.append((MARK, [list(mark.args), f"{item.path.stem}.{name}"]))


def pytest_configure(config: pytest.Config) -> None:
    """With RECORD=1 the rows of tests that passed are written down at the end."""
    is_worker = hasattr(config, "workerinput")
    if os.environ.get("RECORD") and not is_worker:
        config.pluginmanager.register(Recorder(), "recorder of the ecosystem")


class Recorder:
    """Collects rows: one counts where every variant of its test has passed."""

    def __init__(self) -> None:
        self._passed: set[Row] = set()
        self._failed: set[Row] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A phase of a test is over."""
        for name, value in report.user_properties:
            if name == MARK:
                row = row_of(*value)  # type: ignore[misc]
                if not report.passed:
                    self._failed.add(row)
                elif report.when == "call":
                    self._passed.add(row)

    def pytest_sessionfinish(self) -> None:
        """Write the record. Rows of tests that did not run stay as they were."""
        rows = {*recorded(), *self._passed} - self._failed
        RECORD.write_text(as_record(rows & set(declared())), encoding="utf-8")
