"""What a background run costs its store: SQL statements and transactions.

All statements of the process count, also those of the engine and of LangGraph's savers, and those
that begin and end transactions. SQLite's driver and PostgreSQL's log report them. Polling does not
count: a transaction whose statements the process also sends while it waits.
"""

import json
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import sqlalchemy as sa

from bench.process import Server, running, watchkeeper
from tests.parts.postgres import Cluster
from tests.ports import free_port

AGENTS = ("quick=bench.agents:graph", "waiting=bench.agents:waiting")
TOOLS = "5"
RUNS = 10
# A waiting process sends every polling statement within this time.
_IDLE_S = 3.0
_ENDED_S = 120.0
# The observer's own statements are not to be counted.
_SILENT = "-c log_statement=none"
_ENTRY = re.compile(
    r"^@(?P<database>\w*)@(?P<transaction>[\d/]*)@ (?:LOG:  (?:statement|execute [^:]*): )?",
    re.MULTILINE,
)
_VALUES = re.compile(r"x?'(?:[^']|'')*(?:'|$)|(?<![\w$])-?\d+(?:\.\d+)?\b|\$\d+")
_LISTS = re.compile(r"\?(?:, *\?)+")
_WRITES = ("INSERT", "UPDATE", "DELETE", "WITH")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement without its values, and the number of its transaction.

    The number is None if SQLite executes the statement outside of a transaction. PostgreSQL's
    numbers are `SESSION/NUMBER`.
    """

    transaction: str | None
    text: str

    @property
    def is_ping(self) -> bool:
        """Whether it only checks a connection that a pool is about to return."""
        return self.text in (";", "select ?")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run costs on average."""

    statements: float
    transactions: float


Sent = Callable[[], Sequence[Statement]]


def of_run(url: str, server: Cluster | None = None) -> Cost:
    """Execute runs of five tools one after the other in a process of its own, and count.

    `server` is the PostgreSQL server of that URL.
    """
    groups = by_transaction(sent_by_runs(url, server))
    numbers = {each.transaction for group in groups for each in group} - {None}
    return Cost(sum(map(len, groups)) / RUNS, len(numbers) / RUNS)


def sent_by_runs(url: str, server: Cluster | None = None) -> list[Statement]:
    """Return the statements of RUNS runs, without polling."""
    with traced(url, server) as (process, sent):
        base = f"http://127.0.0.1:{process.port}"
        with (
            httpx.Client(base_url=base, timeout=60) as client,
            closing(observer(url)) as observed,
        ):
            time.sleep(_IDLE_S)
            idle = len(sent())
            _submit(client, "waiting")
            _wait_until(lambda: next(observed).rows > 0)
            waiting = len(sent())
            time.sleep(_IDLE_S)
            polling = _texts(sent()[:idle]) | _texts(_reads(sent()[waiting:]))
            execute(client, observed, 2)  # the first run loads and builds
            before = len(sent())
            execute(client, observed, RUNS)
            groups = by_transaction(sent()[before:])
    return [each for group in groups if not _texts(group) <= polling for each in group]


def by_transaction(statements: Iterable[Statement]) -> list[list[Statement]]:
    """Group statements by transaction. A ping belongs to the next transaction of its session."""
    groups, pings = dict[object, list[Statement]](), dict[str, list[Statement]]()
    for each in statements:
        session = (each.transaction or "").partition("/")[0]
        if each.is_ping:
            pings.setdefault(session, []).append(each)
            continue
        group = groups.setdefault(each.transaction or object(), [])
        group += [*pings.pop(session, ()), each]
    return list(groups.values())


def _texts(statements: Iterable[Statement]) -> set[str]:
    return {statement.text for statement in statements}


def _reads(statements: Iterable[Statement]) -> Iterator[Statement]:
    for group in by_transaction(statements):
        if not any(each.text.startswith(_WRITES) for each in group):
            yield from group


@contextmanager
def traced(url: str, server: Cluster | None) -> Iterator[tuple[Server, Sent]]:
    """Serve on that store. Yield the process, and a function that returns its statements so far."""
    port = free_port()
    variables = {"WATCHKEEPER_STORE_URL": url, "MODEL_MS": "0", "TURNS": TOOLS}
    command = [*watchkeeper(None, port), *AGENTS]
    with tempfile.TemporaryDirectory(prefix="watchkeeper-bench-") as folder:
        file = Path(folder) / "statements"
        if server is None:
            command = [sys.executable, "-m", "bench.traced", str(file), *command[3:]]
        with _logged(url, server) as log, running(command, port, variables) as process:
            process.wait_until("/health/ready")
            yield process, log or (lambda: _read_trace(file))


@contextmanager
def _logged(url: str, server: Cluster | None) -> Iterator[Sent | None]:
    """Let the server log the statements of all new connections to the database."""
    if server is None:
        yield None
        return
    database, start = str(sa.make_url(url).database), server.log.stat().st_size
    settings = "set log_statement = 'all'", "set log_min_messages = 'log'"
    with psycopg.connect(server.url, autocommit=True) as connection:
        for setting in settings:
            connection.execute(f'alter database "{database}" {setting}'.encode())
        yield lambda: _read_log(server.log, start, database)
        connection.execute(f'alter database "{database}" reset all'.encode())


def _read_trace(file: Path) -> list[Statement]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [Statement(each and str(each), _without_values(text)) for each, text in lines]


def _read_log(file: Path, start: int, database: str) -> list[Statement]:
    with file.open("rb") as log:
        log.seek(start)
        text = log.read().decode(errors="replace")
    entries = list(_ENTRY.finditer(text))
    ends = [entry.start() for entry in entries[1:]] + [len(text)]
    return [
        Statement(entry["transaction"], _without_values(text[entry.end() : end]))
        for entry, end in zip(entries, ends, strict=True)
        if entry["database"] == database and "LOG:" in entry[0]
    ]


def _without_values(text: str) -> str:
    return _LISTS.sub("?", _VALUES.sub("?", " ".join(text.split())))


@dataclass(frozen=True, slots=True)
class Observed:
    """What the store has: unfinished quick runs, runs with steps, and rows of logs."""

    unended: int
    with_steps: int
    rows: int


def execute(client: httpx.Client, observed: Iterator[Observed], runs: int) -> None:
    """Execute runs one after the other, and wait until all their steps are deleted."""
    for _ in range(runs):
        _submit(client, "quick")
        _wait_until(lambda: next(observed).unended == 0)
    _wait_until(lambda: next(observed).with_steps <= 1)  # the waiting run keeps its own


def _submit(client: httpx.Client, agent: str) -> None:
    submitted = client.post(f"/agents/{agent}/async", json={"question": "order 1?"})
    submitted.raise_for_status()


def _wait_until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _ENDED_S
    while not claim():
        if time.monotonic() > deadline:
            raise TimeoutError("The runs did not end.")
        time.sleep(0.005)


def observer(url: str) -> Generator[Observed, None, None]:
    """Observe the store by a connection whose statements do not count."""
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        with closing(sqlite3.connect(path)) as file:
            file.execute("attach ? as steps", (str(path.with_suffix(".steps")),))
            while True:
                yield _observe(file, "")
    with psycopg.connect(url, autocommit=True, options=_SILENT) as connection:
        while True:
            yield _observe(connection, "dbos.")


def _observe(connection: Any, schema: str) -> Observed:
    counts = (
        f"select count(*) from {schema}workflow_status"
        " where name = 'quick' and status <> 'SUCCESS'",
        "select count(distinct thread_id) from checkpoints",
        f"select count(*) from {schema}streams",
    )
    return Observed(*(connection.execute(count).fetchone()[0] for count in counts))
