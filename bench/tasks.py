"""Background runs: how fast both stores accept, start and execute them.

One process, and two on one store, execute the agent of `agents.py` with five tool calls. Beside
them the same agent answers `POST /agent`, which shows the cost of the store. Then the statements of
a run (`costs.py`), and the queue alone (`drain.py`).
"""

import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from bench import costs, drain, table
from bench.process import Server, running, watchkeeper
from tests.parts.postgres import Cluster, cluster
from tests.ports import free_port

AGENT = "bench.agents:graph"
RUNS, AT_ONCE, ALONE = 200, 10, 30
TOOLS = "5"
_ENDED_S = 300.0
HEADS = (
    "store", "processes", "submits/s", "p50 ms", "p99 ms", "runs/s", "CPU ms a run", "of POST",
    "pick-up p50 ms",
)  # fmt: skip


def run() -> bool:
    """Measure and print. Returns false if a run did not complete."""
    rows, queues, spent, right = [], [], [], True
    for store in ("sqlite", "postgresql"):
        with stored(store) as (url, server), stored(store) as (other_url, _):
            spent.append(costs.row(store, url, other_url, server))
        for processes in (1, 2):
            with stored(store) as (url, _), stored(store) as (bare_url, _):
                queues.append(drain.row(store, url, bare_url, processes))
            with stored(store) as (url, _):
                figures, whole = asyncio.run(_measured(url, processes))
            rows.append((store, str(processes), *figures))
            right = right and whole
    table.show("Background runs", HEADS, rows)
    table.show("What a run costs its store", costs.HEADS, spent)
    table.show("One caller, and a queue of runs that do nothing", drain.HEADS, queues)
    return right


@contextmanager
def stored(store: str) -> Iterator[tuple[str, Cluster | None]]:
    """Yield the URL of a fresh store. For PostgreSQL the bench starts its own server."""
    if store == "postgresql":
        with cluster() as server:
            yield server.url, server
        return
    folder = tempfile.mkdtemp(prefix="watchkeeper-bench-")
    try:
        yield f"sqlite:///{Path(folder) / 'store.sqlite'}", None
    finally:
        shutil.rmtree(folder)


async def _measured(url: str, processes: int) -> tuple[list[str], bool]:
    with ExitStack() as stack:
        servers = []
        for port in [free_port() for _ in range(processes)]:
            environment = {"WATCHKEEPER_STORE_URL": url, "MODEL_MS": "0", "TURNS": TOOLS}
            server = stack.enter_context(running(watchkeeper(AGENT, port), port, environment))
            server.wait_until("/health/ready")
            servers.append(server)
        base = f"http://127.0.0.1:{servers[0].port}"
        async with httpx.AsyncClient(base_url=base, timeout=60) as client:
            await _ended(client, [await _submit(client, [])])  # the first run loads and builds
            waits = [await _pick_up(client) for _ in range(ALONE)]
            asked_ms = await _asked(client, servers)
            return await _drained(client, servers, waits, asked_ms)


async def _submit(client: httpx.AsyncClient, took_s: list[float]) -> str:
    began = time.perf_counter()
    response = await client.post("/agent/async", json={"question": "order 1?"})
    took_s.append(time.perf_counter() - began)
    response.raise_for_status()
    return str(response.json()["task_id"])


async def _ended(client: httpx.AsyncClient, ids: list[str]) -> bool:
    """Wait until all have ended. Returns whether all of them completed."""
    deadline = time.monotonic() + _ENDED_S
    for task_id in ids:
        while True:
            task = (await client.get(f"/agent/async/{task_id}", params={"wait": 20})).json()
            if task["finished_at"] or time.monotonic() > deadline:
                break
        if task["status"] != "completed":
            return False
    return True


async def _pick_up(client: httpx.AsyncClient) -> float:
    task_id = await _submit(client, [])
    await _ended(client, [task_id])
    waited: float = (await client.get(f"/agent/async/{task_id}")).json()["queue_wait_s"]
    return waited * 1000


async def _asked(client: httpx.AsyncClient, servers: list[Server]) -> float:
    """Return the CPU of one run with a waiting caller, in ms."""
    before = sum(server.cpu_s() for server in servers)
    for _ in range(ALONE):
        (await client.post("/agent", json={"question": "order 1?"})).raise_for_status()
    return (sum(server.cpu_s() for server in servers) - before) / ALONE * 1000


async def _drained(
    client: httpx.AsyncClient, servers: list[Server], waits: list[float], asked_ms: float
) -> tuple[list[str], bool]:
    cpu, began, took_s = sum(server.cpu_s() for server in servers), time.monotonic(), list[float]()
    ids: list[str] = []
    for _ in range(RUNS // AT_ONCE):
        ids += await asyncio.gather(*(_submit(client, took_s) for _ in range(AT_ONCE)))
    submitted_s = time.monotonic() - began
    whole = await _ended(client, ids)
    all_s = time.monotonic() - began
    cpu_ms = (sum(server.cpu_s() for server in servers) - cpu) / RUNS * 1000
    ordered = sorted(took_s)
    return [
        f"{RUNS / submitted_s:.0f}",
        f"{statistics.median(ordered) * 1000:.1f}",
        f"{ordered[int(RUNS * 0.99)] * 1000:.0f}",
        f"{RUNS / all_s:.1f}",
        f"{cpu_ms:.1f}",
        f"{cpu_ms / asked_ms:.1f}",
        f"{statistics.median(waits):.0f}",
    ], whole
