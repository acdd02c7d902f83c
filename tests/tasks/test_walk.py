"""Random walks of two processes over one run: each change is one that the table has."""

import asyncio
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import sqlalchemy as sa
from dbos import DBOSClient, DBOSPortableJSONSerializer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.runs.errors import Cancelled, HandedOver
from app.runs.model import Outcome
from app.runs.tasks import Result, TaskStatus
from app.tasks import rows, states
from app.tasks.queries import Queries, Row
from app.tasks.states import CLAIMS, STOPPING, TRANSITIONS, By, RunState, state_of
from app.tasks.store import Store
from app.tasks.tables import Tables
from app.tasks.transitions import Claim, Transitions
from tests.service import served
from tests.tasks.background import quick, url_in
from tests.tasks.journal_desk import write_row

pytestmark = pytest.mark.timeout(300)  # it waits for nothing, and has much to do
PROCESSES = ("one", "two")
EXAMPLES, STEPS = (500, 60) if os.environ.get("SOAK") else (15, 25)
some_process = st.sampled_from(PROCESSES)
some_end = st.sampled_from([Outcome.COMPLETED, Outcome.TIMEOUT, Outcome.FAILED])
which = st.integers(0, 5)


@contextmanager
def lost_reply(store: Store) -> Iterator[None]:
    """The next commit of the store reaches the database, and its reply does not come back."""

    def lose(connection: Any) -> None:
        connection.connection.commit()
        raise sa.exc.OperationalError("commit", {}, Exception("gone"))

    sa.event.listen(store.worker, "commit", lose)
    try:
        yield
    finally:
        sa.event.remove(store.worker, "commit", lose)


class Walk(RuleBasedStateMachine):
    """Two processes, callers and faults on one run. Stale claims write too."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(self.url)
        self.tables = Tables(is_file=self.store.is_file)
        self.queries = Queries(self.tables, self.store.calls)
        self.transitions = Transitions(self.store, self.tables)
        self.client = DBOSClient(
            system_database_engine=self.store.calls, serializer=DBOSPortableJSONSerializer()
        )
        self.task_id = str(uuid.uuid4())
        self.client.enqueue(
            {"workflow_name": "a", "queue_name": "a", "workflow_id": self.task_id}, {}
        )
        self.claims: list[Claim] = []
        self.read: list[Row] = []
        self.written = 0
        self.ended: tuple[TaskStatus, str] | None = None

    def teardown(self) -> None:
        """Release the store."""
        self.client.destroy()
        self.store.close()

    def row(self) -> Row:
        found = self.queries.row(self.task_id)
        assert found is not None
        return found

    def holder(self) -> Claim | None:
        """The claim that has the run, or had it when it was cancelled."""
        row = self.row()
        token = row["owner_xid"]
        if state_of(row) in STOPPING:
            token = row["attributes"][rows.STARTED_TOKEN]
        return next((claim for claim in self.claims if claim.token == token), None)

    def change(self, by: By, act: Callable[[], object], claim: Claim | None = None) -> None:
        """Do something, and compare what it changed with the table."""
        before, holder = self.row(), self.holder()
        with suppress(Cancelled, HandedOver, sa.exc.OperationalError):
            act()
        after = self.row()
        old, new = state_of(before), state_of(after)
        if claim is not None and claim is not holder:
            assert _stored(after) == _stored(before), "a stale claim changed the run"
        if old is new:
            return
        allowed = [t for t in TRANSITIONS if old in t.sources and new in t.targets and by in t.by]
        assert allowed, f"{by} changed {old} to {new}"
        assert not any(t.reserved for t in allowed)

    def claim_of(self, number: int) -> Claim | None:
        return self.claims[-1 - number % len(self.claims)] if self.claims else None

    @rule(process=some_process)
    def claims_it(self, process: str) -> None:
        """The engine of a process claims the run, if it is queued."""
        run, token = self.tables.runs, uuid.uuid4().hex
        queued = sa.and_(run.c.workflow_uuid == self.task_id, run.c.status == "ENQUEUED")
        values = {"status": "PENDING", "executor_id": process, "owner_xid": token}

        def claim() -> None:
            with self.store.calls.begin() as connection:
                if connection.execute(sa.update(run).where(queued).values(values)).rowcount:
                    self.claims.append(Claim(self.store, self.tables, self.task_id, token, process))

        self.change(By.ENGINE, claim)

    @rule(number=which)
    def starts(self, number: int) -> None:
        """A process starts the run of a claim, perhaps a stale one."""
        if (claim := self.claim_of(number)) is not None:
            self.change(By.OWNER, lambda: claim.start(60.0), claim)

    @rule(number=which, lost=st.booleans())
    def writes(self, number: int, lost: bool) -> None:
        """A process writes a row of the log; perhaps it never learns that it did."""
        claim = self.claim_of(number)
        if claim is None:
            return
        before = len(self.queries.log(self.task_id, 0))
        may = claim is self.holder() and state_of(self.row()) in CLAIMS
        row = {"events": [], "progress": {"iterations": before}}

        def write() -> None:
            if not lost:
                return write_row(claim, before, row)
            with lost_reply(self.store):
                return write_row(claim, before, row)

        self.change(By.OWNER, write, claim)
        assert len(self.queries.log(self.task_id, 0)) - before == may

    @rule(number=which, outcome=some_end, lost=st.booleans())
    def ends(self, number: int, outcome: Outcome, lost: bool) -> None:
        """A process stores the end of the run; perhaps it asks again, as it got no reply."""
        claim = self.claim_of(number)
        if claim is None or state_of(self.row()) is RunState.CLAIMED:
            return
        result = Result(outcome, {"by": claim.token})

        def end() -> None:
            if lost:
                with lost_reply(self.store), suppress(sa.exc.OperationalError):
                    claim.end(result, 10_000, {"events": []})
            claim.end(result, 10_000, {"events": []})

        self.change(By.OWNER, end, claim)

    @rule(number=which)
    def hands_over(self, number: int) -> None:
        """A process that shuts down hands the run of a claim over."""
        if (claim := self.claim_of(number)) is not None:
            self.change(By.OWNER, claim.hand_over, claim)

    @rule(number=which, stuck=st.booleans())
    def reports(self, number: int, stuck: bool) -> None:
        """A process reports that a cancelled run has stopped."""
        if (claim := self.claim_of(number)) is not None:
            self.change(By.OWNER, lambda: claim.report_stop({"a": 1}, stuck=stuck), claim)

    @rule()
    def is_cancelled(self) -> None:
        """A caller cancels the run."""
        self.change(
            By.CALLER, lambda: asyncio.run(self.store.call(self.transitions.cancel, self.task_id))
        )

    @rule()
    def is_read(self) -> None:
        """The recovery of a process reads the run, and acts on that later."""
        self.read.append(self.row())

    @rule(number=which, gives_up=st.booleans())
    def recovers(self, number: int, gives_up: bool) -> None:
        """The recovery of a process takes the run over as it read it, or gives it up."""
        if not self.read:
            return
        row = self.read[-1 - number % len(self.read)]
        act = self.transitions.give_up if gives_up else self.transitions.take_over
        self.change(By.RECOVERY, lambda: act(row, {rows.IN_VAIN: 1}))

    @rule(process=some_process)
    def owner_is_dead(self, process: str) -> None:
        """The cancellations job finds the owner dead."""
        self.change(
            By.CANCELLATIONS, lambda: self.transitions.report_stop_of(self.task_id, process)
        )

    @precondition(lambda self: state_of(self.row()) is RunState.CANCELLING)
    @rule()
    def time_goes_by(self) -> None:
        """Nobody reports for longer than callers wait."""
        run = self.tables.runs
        earlier = {
            rows.FINISHED: self.row()["attributes"][rows.FINISHED] - states.UNREPORTED_AFTER_S - 1
        }
        aged = self.tables.updating(run.c.workflow_uuid == self.task_id, earlier)

        def age() -> None:
            with self.store.calls.begin() as connection:
                connection.execute(aged)

        self.change(By.TIME, age)

    @invariant()
    def end_stays(self) -> None:
        """Once a caller has read an end, every caller reads the same, with the same result."""
        state = state_of(self.row())
        if not state.is_final:
            assert self.ended is None, f"{self.ended} became {state}"
            return
        found = self.client.list_workflows(workflow_ids=[self.task_id])[0].output
        now = (state.as_status, json.dumps(found))
        assert self.ended in (None, now)
        self.ended = now


def _stored(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "now"}


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A store with every table."""
    Walk.url = url_in(tmp_path_factory.mktemp("walk"))

    async def once() -> None:
        async with served({"quick": quick()}, store_url=Walk.url):
            pass

    asyncio.run(once())


class TestWalk(Walk.TestCase):  # type: ignore[misc,valid-type]
    """Walks at random."""

    settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
