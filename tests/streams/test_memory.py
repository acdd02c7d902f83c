"""The memory of a process with readers that never read, as the kernel measures it."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.command import Serving, serving
from tests.streams.endless_text import SAYS_BYTES
from tests.streams.reading import SOAK, deaf, post

READERS = 200 if SOAK else 20
PATIENCE_S = 240.0 if SOAK else 60.0
VARIABLES = {
    "WATCHKEEPER_MAX_RUNNING_RUNS": str(READERS),
    "WATCHKEEPER_TIMEOUT_S": str(PATIENCE_S),
    "WATCHKEEPER_STREAM_WRITE_S": "1",
    "WATCHKEEPER_STORE_URL": "none",  # it opens files when it likes
}
# What a reader may cost: what is kept of its run, as much again on its way out, and the agent.
MOST_A_READER = 0.4 * SAYS_BYTES


class Process:
    """The kernel's numbers of a service, and the service's numbers of its readers."""

    def __init__(self, service: Serving) -> None:
        self._place = Path(f"/proc/{service.process.pid}")
        self._url = service.url

    def resident_bytes(self) -> int:
        """The memory of the process that is in use."""
        (line,) = [
            line
            for line in (self._place / "status").read_text().splitlines()
            if line.startswith("VmRSS:")
        ]
        return int(line.split()[1]) * 1024

    def open_files(self) -> int:
        """How many files and sockets it has open."""
        return len(list((self._place / "fd").iterdir()))

    def metric(self, *words: str) -> float:
        """The sum of the samples whose lines begin with the first word and hold the others."""
        lines = httpx.get(f"{self._url}/metrics", timeout=30).text.splitlines()
        found = [line for line in lines if line.startswith(words[0])]
        return sum(float(line.split()[-1]) for line in found if all(w in line for w in words))

    def ended(self) -> float:
        """How many runs have completed."""
        return self.metric("agent_runs_total", 'outcome="completed"')

    def stalled(self) -> float:
        """How many readers were dropped."""
        return self.metric("agent_stream_disconnects_total", 'reason="stalled"')


def peak(process: Process, claim: Callable[[], bool]) -> int:
    """The most memory in use until the claim is true; fails when that takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    most = process.resident_bytes()
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.05)
        most = max(most, process.resident_bytes())
    return most


def growth(process: Process, service: Serving, readers: int) -> int:
    """How much the memory grows, at its most, while so many never read until they are dropped."""
    with ExitStack() as stack:
        before, ended = process.resident_bytes(), process.ended()
        dropped = process.stalled()
        for _ in range(readers):
            request = post(query="on_disconnect=continue")
            stack.enter_context(deaf(service.url, request))

        def over() -> bool:
            return process.ended() >= ended + readers and process.stalled() >= dropped + readers

        return peak(process, over) - before


@pytest.mark.timeout(2 * PATIENCE_S)
def test_readers_that_never_read_cost_little(tmp_path: Path) -> None:
    """However much is sent to readers who never read, the service holds little and drops them."""
    with serving(tmp_path, "tests.streams.endless_text:pours", variables=VARIABLES) as service:
        process = Process(service)
        growth(process, service, 1)  # what is loaded and built once
        files, dropped = process.open_files(), process.stalled()
        grown = growth(process, service, READERS)
        print(f"{grown / READERS / 1e6:.2f} MB a reader, of {SAYS_BYTES / 1e6:.0f} MB said")
        assert process.stalled() == dropped + READERS
        peak(process, lambda: process.metric("agent_stream_connections") == 0)
        # One or two are of another reader.
        peak(process, lambda: process.open_files() <= files + 2)
    assert grown < READERS * MOST_A_READER


def test_measurement_detects_unbounded_rings(tmp_path: Path) -> None:
    """The same measurement detects rings without bounds."""
    agent = "tests.streams.endless_text:pours_without_bounds"
    with serving(tmp_path, agent, variables=VARIABLES) as service:
        grown = growth(Process(service), service, 5)
    assert grown > 5 * 2 * MOST_A_READER
