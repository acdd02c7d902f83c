"""The queue alone: one caller submits runs that do nothing, and workers drain them.

The runs are of an agent that answers at once, beside the engine alone. They wait in a queue that no
worker polls until every process is up.
"""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import sqlalchemy as sa
from dbos import DBOSClient, DBOSPortableJSONSerializer, EnqueueOptions

from app.tasks.store import Store
from app.tasks.tables import Tables
from bench import engine, table
from bench.process import ROOT, running, watchkeeper
from tests.ports import free_port

AGENT = "nothing=bench.agents:nothing"
RUNS = 300
_DRAINED_S = 120.0
_HELD = "held"
HEADS = (
    "store", "processes", "submit p50 ms", "p99 ms", "engine runs/s", "ours runs/s",
    "CPU ms a run",
)  # fmt: skip


def row(store: str, url: str, bare_url: str, processes: int) -> list[str]:
    """Return one line of the table, measured on two fresh stores of a kind."""
    took_ms = submitted(url)
    a_second, cpu_ms = ours(url, processes)
    return [
        store,
        str(processes),
        f"{statistics.median(took_ms):.1f}",
        f"{table.percentile(took_ms, 99):.0f}",
        f"{alone(bare_url, processes):.0f}",
        f"{a_second:.0f}",
        f"{cpu_ms:.1f}",
    ]


class Queue:
    """The queue of a store. The bench stops it, starts it, and counts its rows."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self._runs = Tables(is_file=self.store.is_file).runs

    def hold(self) -> None:
        """Move all queued runs to a queue that no worker polls."""
        self._move(_HELD)

    def drain(self) -> float:
        """Move all runs back. Returns how many runs a second ended from then on."""
        self._move("nothing")
        began = time.monotonic()
        unended = sa.select(sa.func.count()).select_from(self._runs)
        unended = unended.where(self._runs.c.status != "SUCCESS")
        while time.monotonic() - began < _DRAINED_S:
            with self.store.calls.connect() as connection:
                if connection.execute(unended).scalar_one() == 0:
                    return RUNS / (time.monotonic() - began)
            time.sleep(0.02)
        raise TimeoutError("The runs did not end.")

    def _move(self, queue: str) -> None:
        with self.store.calls.begin() as connection:
            waiting = sa.update(self._runs).where(self._runs.c.status == "ENQUEUED")
            connection.execute(waiting.values(queue_name=queue))


@contextmanager
def queue(url: str) -> Iterator[Queue]:
    """Open the queue of a store for the block."""
    opened = Queue(url)
    try:
        yield opened
    finally:
        opened.store.close()


def submitted(url: str) -> list[float]:
    """Submit with one caller to a process that executes nothing. Returns each time in ms."""
    port = free_port()
    command = [*watchkeeper(AGENT, port), "--no-background"]
    with running(command, port, {"WATCHKEEPER_STORE_URL": url}) as server:
        server.wait_until("/health/ready")
        return asyncio.run(_submitted(port))


async def _submitted(port: int) -> list[float]:
    took_ms = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for _ in range(RUNS):
            began = time.perf_counter()
            response = await client.post("/agent/async", json={"question": "?"})
            took_ms.append((time.perf_counter() - began) * 1000)
            response.raise_for_status()
    return took_ms


def ours(url: str, processes: int) -> tuple[float, float]:
    """Drain the runs with workers. Returns runs a second, and CPU a run in ms."""
    with queue(url) as held, ExitStack() as stack:
        held.hold()
        servers = []
        for port in [free_port() for _ in range(processes)]:
            command = [sys.executable, "-m", "app", "worker", "--port", str(port), AGENT]
            environment = {"WATCHKEEPER_STORE_URL": url}
            server = stack.enter_context(running(command, port, environment))
            server.wait_until("/health/ready")
            servers.append(server)
        cpu_s = sum(server.cpu_s() for server in servers)
        a_second = held.drain()
        return a_second, (sum(server.cpu_s() for server in servers) - cpu_s) / RUNS * 1000


def alone(url: str, processes: int) -> float:
    """Drain as many workflows that return at once, with processes of the engine alone."""
    with queue(url) as held, ExitStack() as stack:
        for number in range(processes):
            stack.enter_context(_engine(url))
            if number == 0:  # the first process creates the tables
                _enqueue(held.store)
        return held.drain()


def _enqueue(store: Store) -> None:
    client = DBOSClient(system_database_engine=store.calls, serializer=DBOSPortableJSONSerializer())
    options: EnqueueOptions = {
        "workflow_name": engine.QUEUE, "queue_name": _HELD, "app_version": "1"
    }  # fmt: skip
    for _ in range(RUNS):
        client.enqueue(options, {"question": "?"})


@contextmanager
def _engine(url: str) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.engine", url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("The engine did not start.")
        yield
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()
