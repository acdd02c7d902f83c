"""What background runs cost their store, and what an idle service costs."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx
import psycopg

from bench import statements
from bench.process import Server, running, watchkeeper
from bench.statements import AGENTS, RUNS, TOOLS, execute, observer
from tests.parts.postgres import Cluster
from tests.ports import free_port

HEADS = ("store", "statements a run", "transactions", "WAL syncs", "idle % of a core")
# PostgreSQL's sessions report their syncs after ten idle seconds at the latest.
_QUIET_S = 11.0


def row(store: str, url: str, other_url: str, server: Cluster | None) -> list[str]:
    """Return one line of the table, measured on two fresh stores of a kind."""
    cost = statements.of_run(url, server)
    syncs, idle = _measured(other_url)
    return [
        store,
        f"{cost.statements:.0f}",
        f"{cost.transactions:.1f}",
        "-" if syncs is None else f"{syncs:.1f}",
        f"{idle * 100:.1f}",
    ]


def _measured(url: str) -> tuple[float | None, float]:
    """Return the syncs of one run, and the share of a core that an idle process uses."""
    with _served(url) as (server, client), closing(observer(url)) as observed:
        execute(client, observed, 2)
        time.sleep(_QUIET_S)
        first = _syncs(url)
        execute(client, observed, RUNS)
        time.sleep(_QUIET_S)
        after_runs, cpu_s = _syncs(url), server.cpu_s()
        time.sleep(_QUIET_S)
        idle = (server.cpu_s() - cpu_s) / _QUIET_S
        return (None if first is None or after_runs is None else (after_runs - first) / RUNS), idle


@contextmanager
def _served(url: str) -> Iterator[tuple[Server, httpx.Client]]:
    port = free_port()
    variables = {"WATCHKEEPER_STORE_URL": url, "MODEL_MS": "0", "TURNS": TOOLS}
    with (
        running([*watchkeeper(None, port), AGENTS[0]], port, variables) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        server.wait_until("/health/ready")
        yield server, client


def _syncs(url: str) -> int | None:
    """Return how often the server has synced its WAL; None for a file."""
    if url.startswith("sqlite"):
        return None
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("select wal_sync from pg_stat_wal").fetchone()
    assert row is not None
    return int(row[0])
