"""A server under measurement, in a process of its own: started, observed from outside, stopped."""

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bench.load import Seen

ROOT = Path(__file__).parents[1]
_START_S = 60.0
_STOP_S = 10.0
_LOAD_S = 60.0
# Variables that would change a server, export its telemetry, or make it compile its source at each
# start.
_FOREIGN = (
    "WATCHKEEPER_", "LANGCHAIN_", "LANGSMITH_", "OTEL_", "UVICORN_", "WEB_CONCURRENCY",
    "PYTHONDONTWRITEBYTECODE",
)  # fmt: skip


class DidNotStart(Exception):
    """A server ended, or never answered. The message has the end of its output."""


class Server:
    """One process that serves `POST /agent` on loopback."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, output: IO[bytes]) -> None:
        self.process = process
        self.port = port
        self._output = output

    def cpu_s(self) -> float:
        """Return user and system time of all its threads, including those that ended.

        The same figure is in /proc/PID/stat, in hundredths of a second. The CPU clock of the
        process counts nanoseconds.
        """
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def rss_mb(self) -> float:
        """Return the resident memory."""
        return rss_mb(self.process.pid)

    def wait_until(self, path: str, status: int = 200) -> None:
        """Wait until a GET of the path returns that status. Raises DidNotStart."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            if self._get(path) == status:
                return
            time.sleep(0.005)
        raise DidNotStart(f"{self.process.args!r} did not answer {path}: {self.output()[-2000:]}")

    def _get(self, path: str) -> int | None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_START_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):  # not listening yet
            return None
        finally:
            connection.close()

    def output(self) -> str:
        """Return what it has written to stderr."""
        # Read at a position: the process writes through the same open file.
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode(errors="replace")

    def load(self, clients: int, requests: int) -> Seen:
        """Ask it from another process. Raises CalledProcessError if an answer was wrong."""
        command = [sys.executable, "-m", "bench.load", str(self.port), str(clients), str(requests)]
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=_LOAD_S
        )
        return Seen(**json.loads(done.stdout))

    def ask_to_stop(self) -> None:
        """Send it SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait until it has stopped. Kill it if it does not stop in time."""
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._output.close()


def watchkeeper(agent: str | None, port: int, *flags: str) -> list[str]:
    """Return the command that serves an agent, or the demo, with Watchkeeper's defaults."""
    agents = [agent] if agent else []
    return [sys.executable, *flags, "-m", "app", "serve", "--port", str(port), *agents]


def uvicorn(factory: str, port: int) -> list[str]:
    """Return the command that serves an application with uvicorn's defaults."""
    return [sys.executable, "-m", "uvicorn", "--factory", "--port", str(port), factory]


@contextmanager
def running(
    command: Sequence[str], port: int, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start a command for the block, and stop its process at the end."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by Server.wait
    data_dir = tempfile.TemporaryDirectory(prefix="watchkeeper-bench-")
    own["WATCHKEEPER_DATA_DIR"] = data_dir.name
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=own | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=output,
    )
    server = Server(process, port, output)
    try:
        yield server
    finally:
        server.ask_to_stop()
        server.wait()
        data_dir.cleanup()


def rss_mb(pid: int | str) -> float:
    """Return the resident memory of a process; `self` is this one."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
