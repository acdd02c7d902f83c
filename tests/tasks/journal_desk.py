"""A journal on a real store, with claims of runs that no process executes."""

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dbos import DBOSClient, DBOSPortableJSONSerializer

from app.runs.errors import RunError
from app.tasks import rows, transitions
from app.tasks.backlog import Claim, Entry
from app.tasks.batches import BatchWriter, Outage
from app.tasks.journal import Journal
from app.tasks.queries import Queries
from app.tasks.store import Store
from app.tasks.tables import Tables
from tests.service import served
from tests.tasks.background import LONG_S, quick, url_in

ME, OTHER = "me", "other"


@dataclass(frozen=True)
class Claimed:
    """A claim of a run, and nothing more."""

    task_id: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    process: str = ME


class Gate:
    """A write that holds the journal's thread until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    def __call__(self, _: sa.Connection) -> None:
        """Wait inside of the transaction."""
        self.reached.set()
        assert self._open.wait(LONG_S)

    def open(self) -> None:
        """Let the transaction go on."""
        self._open.set()


class Desk:
    """A journal and its store. `commits` counts the transactions of the journal."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.tables = Tables(is_file=self.store.is_file)
        self.client = DBOSClient(
            system_database_engine=self.store.calls, serializer=DBOSPortableJSONSerializer()
        )
        self.faults: list[BaseException] = []
        self.commits = 0
        self.journal = Journal(self.store, self.tables, self.faults.append)
        sa.event.listen(self.store.worker, "commit", self._count)

    def _count(self, _: sa.Connection) -> None:
        self.commits += 1

    def claim(self) -> Claimed:
        """A run that this process has claimed and started."""
        claim = Claimed(str(uuid.uuid4()))
        self.client.enqueue(
            {"workflow_name": "a", "queue_name": "a", "workflow_id": claim.task_id}, {}
        )
        self.change(
            claim,
            status="PENDING",
            executor_id=claim.process,
            owner_xid=claim.token,
            attributes={rows.STARTED_TOKEN: claim.token},
        )
        return claim

    def change(self, claim: Claim, **columns: Any) -> None:
        """Change the row of a run, as another process would."""
        run = self.tables.runs
        with self.store.calls.begin() as connection:
            changed = sa.update(run).where(run.c.workflow_uuid == claim.task_id).values(columns)
            assert connection.execute(changed).rowcount == 1

    def take_over(self, claim: Claim) -> None:
        """Let another process claim the run."""
        self.change(claim, executor_id=OTHER, owner_xid=uuid.uuid4().hex)

    def cancel(self, claim: Claim, **attributes: Any) -> None:
        """Cancel the run, as another process would."""
        stored = {rows.STARTED_TOKEN: claim.token, rows.FINISHED: time.time(), **attributes}
        self.change(claim, status="CANCELLED", owner_xid=None, attributes=stored)

    def row(self, claim: Claim, offset: int, text: str = "", **columns: Any) -> sa.Insert:
        """A row of a run's log."""
        values = {
            "workflow_uuid": claim.task_id,
            "key": rows.LOG,
            "offset": offset,
            "value": json.dumps(text),
            "function_id": 0,
        }
        return self.tables.insert_once(values | columns)

    def refused(self, claim: Claim) -> sa.Insert:
        """A row that every store refuses: it lacks a part of its key."""
        return self.row(claim, 0, key=None)

    def add(self, claim: Claim, offset: int, text: str = "") -> "Future[None]":
        """Add a row of a run's log."""
        return self.journal.add(claim, self.row(claim, offset, text), len(text))

    def hold(self) -> Gate:
        """Let the journal write until it stops inside of a transaction."""
        gate = Gate()
        self.journal.add(self.claim(), gate)
        assert gate.reached.wait(LONG_S)
        return gate

    def flush(self, claim: Claim) -> None:
        """Wait until all that the claim has added is committed."""
        self.journal.flushing(claim).result(LONG_S)

    def stored(self, claim: Claim) -> list[Any]:
        """The stored rows of the run's log."""
        return list(Queries(self.tables, self.store.calls).log(claim.task_id, 0))


def write_row(claim: transitions.Claim, offset: int, row: Mapping[str, Any]) -> None:
    """Write a row of a claim's log, as the journal does; raises its refusal, or an outage."""
    writer, refusals = BatchWriter(claim.store, claim.tables), list[RunError | None]()
    entries = [Entry(0.0, claim.appending(offset, row))]
    try:
        writer.write({claim: entries}, lambda _, refusal: refusals.append(refusal))
    except Outage as outage:
        raise outage.__cause__ or outage from None
    finally:
        writer.close()
    if refusals != [None]:
        raise refusals[0] or AssertionError


async def prepared(folder: Path) -> str:
    """A store on which a service was: it has every table."""
    url = url_in(folder)
    async with served({"quick": quick()}, store_url=url):
        return url


def prepare(folder: Path) -> str:
    """The same, for fixtures."""
    return asyncio.run(prepared(folder))


@contextmanager
def opened(url: str) -> Iterator[Desk]:
    """A desk, closed at the end. Its thread must not have failed."""
    desk = Desk(url)
    try:
        with closing(desk.store):
            yield desk
            desk.journal.close(LONG_S)
    finally:
        desk.client.destroy()
    assert desk.faults == []
