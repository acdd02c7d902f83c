"""Runs whose end cannot simply be stored: their process hangs, or the store refuses a part."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from urllib.request import urlopen

import pytest
import sqlalchemy as sa

from app.runs.tasks import task_id as id_of
from tests.chaos.agents import Plan
from tests.chaos.fleet import Fleet, call, fleet
from tests.parts.polling import ended, submitted, until
from tests.parts.postgres import cluster

# What is refused: a row of the log, the result, the end of the run.
_LOG = ("streams", "insert", "true")
_RESULT = ("workflow_output", "insert", "true")
_END = ("workflow_status", "update", "new.status = 'SUCCESS'")
Write = tuple[str, str, str]
_WRITES = (_LOG, _RESULT, _END)
_TWO_TURNS = [("begin", 0), ("end", 0), ("begin", 1), ("end", 1)]


class Faults:
    """Makes a store refuse some writes of some runs, from outside of the servers."""

    def __init__(self, url: str) -> None:
        self._is_file = url.startswith("sqlite")
        self._engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        self._schema = "" if self._is_file else "dbos."

    def refuse(self, write: Write, task_id: str) -> None:
        """From now on this kind of write fails for a run, as nothing in the service expects."""
        table, what, when = write
        named = f"new.workflow_uuid = '{task_id}' and {when}"
        if self._is_file:
            self._do(
                f"create trigger refuse_{table} before {what} on {table} when {named} "
                "begin select abs(-9223372036854775807 - 1); end"
            )
            return
        self._do(
            "create or replace function refuse() returns trigger language plpgsql as "
            "$$ begin raise exception 'refused'; end $$"
        )
        self._do(
            f"create trigger refuse_{table} before {what} on {self._schema}{table} "
            f"for each row when ({named}) execute function refuse()"
        )

    def accept(self, write: Write) -> None:
        """It may be written again."""
        on = "" if self._is_file else f" on {self._schema}{write[0]}"
        self._do(f"drop trigger refuse_{write[0]}{on}")

    def close(self) -> None:
        """Release the store."""
        self._engine.dispose()

    def _do(self, statement: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.text(statement))


@dataclass(frozen=True)
class Served:
    """Two servers on a store that can refuse."""

    ships: Fleet
    faults: Faults


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    """On both stores, since most of these tests is waiting."""
    folders = [tmp_path_factory.mktemp(name) for name in ("file", "server")]
    with ExitStack() as parts:
        server = parts.enter_context(cluster())
        stores = []
        for folder, url in zip(
            folders, (f"sqlite:///{folders[0] / 'store'}", server.url), strict=True
        ):
            ships = parts.enter_context(fleet(folder, url))
            ships.start_all()
            stores.append(Served(ships, parts.enter_context(closing(Faults(url)))))
        yield stores


def on_each(stores: list[Served], check: Callable[[Served], None]) -> None:
    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(check, stores))


def test_run_of_a_hanging_process_times_out(both: list[Served]) -> None:
    """Another process ends its run as `timeout`, and the run does not go on when it wakes up."""
    on_each(both, _hangs)


def _hangs(served: Served) -> None:
    ships = served.ships
    plan = Plan("held", turns=6, seconds=1.0)
    task_id = submitted(ships.ports[0], plan.question, timeout=5)
    until(lambda: ships.receipts(plan.name), "it has not begun")
    owner = ships.port_of(ships.receipts(plan.name)[0].pid)
    [other] = [port for port in ships.ports if port != owner]
    ships.signal(owner, signal.SIGSTOP)
    held_at = time.time()
    try:
        task = ended(other, task_id)
    finally:
        ships.signal(owner, signal.SIGCONT)
    print(f"ended by another process after {time.time() - held_at:.1f} s")
    assert (task["status"], task["error"]["code"], task["attempts"]) == ("timeout", "timeout", 2)
    time.sleep(3)  # in which it would go on
    begun = [r for r in ships.receipts(plan.name) if r.what == "begin"]
    assert all(r.at < held_at for r in begun), begun
    for port in ships.ports:
        assert call(port, "GET", f"/agent/async/{task_id}")[1] == task
    assert sum(map(_timeouts, ships.ports)) == 1


def _timeouts(port: int) -> float:
    """How many runs of this outcome a server reports."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        samples = response.read().decode().splitlines()
    ended_so = 'agent_runs_total{agent="graph",mode="background",outcome="timeout"} '
    return sum(float(s.removeprefix(ended_so)) for s in samples if s.startswith(ended_so))


def test_run_that_the_store_refused_ends_later(both: list[Served]) -> None:
    """A run whose log, result or end could not be stored ends once it can be, and ends once."""
    on_each(both, _refuses)


def _refuses(served: Served) -> None:
    ships, faults = served.ships, served.faults
    port = ships.ports[0]
    plans = {write: Plan(f"refused {write[0]}", turns=2, seconds=0.1) for write in _WRITES}
    ids = {write: id_of("graph", plan.name) for write, plan in plans.items()}
    for write, plan in plans.items():
        faults.refuse(write, ids[write])  # before it can be written
        body, key = {"question": plan.question}, {"Idempotency-Key": plan.name}
        reply = call(port, "POST", "/agents/graph/async", body, key, timeout_s=30)
        assert (reply[0], reply[1]["task_id"]) == (202, ids[write])

    def calls(write: Write) -> list[tuple[str, int]]:
        return [(r.what, r.n) for r in ships.receipts(plans[write].name)]

    until(lambda: all(calls(w) == _TWO_TURNS for w in (_RESULT, _END)), "they have not worked")
    time.sleep(2)  # in which their ends are refused
    for write, task_id in ids.items():
        reply = call(port, "GET", f"/agent/async/{task_id}", timeout_s=30)[1]
        assert reply["status"] == "running"
        faults.accept(write)
    for write in _WRITES:
        ending = ended(port, ids[write])
        assert (ending["status"], ending["attempts"]) == ("completed", 1), ending
        assert ending["result"]["answer"] == plans[write].answer
        assert calls(write) == _TWO_TURNS


def test_steps_with_nul_are_returned(both: list[Served]) -> None:
    """A cancelled run returns its steps although they have the character NUL."""
    on_each(both, _is_cancelled)


def _is_cancelled(served: Served) -> None:
    ships, plan = served.ships, Plan("nul \0", turns=3, held=1)
    task_id = submitted(ships.ports[0], plan.question, include_steps=True)
    until(lambda: len(ships.receipts(plan.name)) >= 3, "its second call has not begun")
    call(ships.ports[0], "DELETE", f"/agent/async/{task_id}", timeout_s=30)
    steps = until(lambda: ended(ships.ports[0], task_id)["error"]["steps"], "it tells no steps")
    assert steps[0]["arguments"]["name"] == plan.name
