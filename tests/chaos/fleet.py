"""Two servers on one store, which can be killed, paused and started again."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.chaos.agents import RECEIPTS, Receipt, receipts
from tests.command import environment
from tests.ports import free_port

UP_S = 60.0
Reply = tuple[int | None, Any]


class Fleet:
    """Servers by the number of their port; each is started again with the same port."""

    def __init__(
        self,
        folder: Path,
        store_url: str,
        servers: int,
        *,
        under: Sequence[str] = (),
        variables: Mapping[str, str],
    ) -> None:
        self.ports = [free_port() for _ in range(servers)]
        self.pids: dict[int, int] = {}
        self._file = folder / "receipts"
        self._log = (folder / "servers.log").open("ab")
        self._lock = threading.Lock()
        overrides = {
            "WATCHKEEPER_STORE_URL": store_url,
            "WATCHKEEPER_DRAIN_NOTICE_S": "0",
            "WATCHKEEPER_DRAIN_S": "0.5",
            "WATCHKEEPER_LOG_LEVEL": "warning",
            RECEIPTS: str(self._file),
            **variables,
        }
        self._forks = subprocess.Popen(
            [*under, sys.executable, "-m", "tests.chaos.server"],
            env=environment(overrides),
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def start(self, port: int) -> None:
        """Start the server of a port."""
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        with self._lock:
            self._forks.stdin.write(f"{port}\n")
            self._forks.stdin.flush()
            self.pids[port] = int(self._forks.stdout.readline())

    def start_all(self) -> None:
        """Start every server, one after the other, and wait until they answer."""
        for port in self.ports:
            self.start(port)
        for port in self.ports:
            self.until_up(port)

    def until_up(self, port: int) -> None:
        """Wait until a server answers."""
        end = time.monotonic() + UP_S
        while call(port, "GET", "/health/ready", timeout_s=2.0)[0] != 200:
            assert time.monotonic() < end, Path(self._log.name).read_text()[-3000:]
            time.sleep(0.05)

    def signal(self, port: int, number: signal.Signals) -> None:
        """Send the server of a port a signal, unless it has exited."""
        with suppress(ProcessLookupError):
            os.kill(self.pids[port], number)

    def kill(self, port: int) -> None:
        """Kill it, and wait for its exit."""
        self.signal(port, signal.SIGKILL)
        end = time.monotonic() + UP_S
        while _is_there(self.pids[port]):
            assert time.monotonic() < end
            time.sleep(0.005)

    def is_up(self, port: int) -> bool:
        """Whether its process is there."""
        return port in self.pids and _is_there(self.pids[port])

    def port_of(self, pid: int) -> int:
        """The port of a process."""
        return next(port for port, known in self.pids.items() if known == pid)

    def lines(self, event: str) -> list[dict[str, Any]]:
        """What all servers logged of an event."""
        written = Path(self._log.name).read_text().splitlines()
        found = [json.loads(line) for line in written if line[:1] == "{" and line[-1:] == "}"]
        return [line for line in found if line["event"] == event]

    def receipts(self, name: str | None = None) -> list[Receipt]:
        """What tools wrote, of one plan or of all."""
        return [r for r in receipts(self._file) if name in (None, r.name)]

    @property
    def written(self) -> int:
        """How much tools wrote."""
        return self._file.stat().st_size if self._file.exists() else 0

    def close(self) -> None:
        """End all processes."""
        for port in self.pids:
            self.signal(port, signal.SIGCONT)
            self.signal(port, signal.SIGKILL)
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        self._forks.kill()  # to take so many modules down would take it a second
        self._forks.wait(UP_S)
        self._forks.stdin.close()
        self._forks.stdout.close()
        self._log.close()


@contextmanager
def fleet(
    folder: Path,
    store_url: str,
    servers: int = 2,
    variables: Mapping[str, str] | None = None,
    under: Sequence[str] = (),
) -> Iterator[Fleet]:
    """Servers on a store; none is started yet. `under` is a command that starts the command."""
    ships = Fleet(folder, store_url, servers, under=under, variables=variables or {})
    try:
        yield ships
    finally:
        ships.close()


def call(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 5.0,
) -> Reply:
    """One request; no status where there was no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        given = {"content-type": "application/json", **(headers or {})}
        connection.request(method, path, None if body is None else json.dumps(body), given)
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null")
    except (OSError, http.client.HTTPException, ValueError):
        return None, None
    finally:
        connection.close()


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
