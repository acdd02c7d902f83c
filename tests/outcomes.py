"""A pytest plugin that writes the outcome of each test to a file, for `tests.twice`."""

import json
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Name the file."""
    parser.addoption("--outcomes", type=Path, required=True, help="write each outcome to this file")


def pytest_configure(config: pytest.Config) -> None:
    """Only the process that pytest was started as writes: it sees what its workers report."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(config.getoption("--outcomes")))


class Outcomes:
    """Writes a line for each phase of a test, as it ends: a run that is cut leaves what it knew."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A phase of a test is over: its setup, its call or its teardown."""
        self._write(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module was read, or could not be."""
        if report.failed:
            self._write(report)

    def _write(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        line = json.dumps({"id": report.nodeid, "failed": report.failed})
        with self._file.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
