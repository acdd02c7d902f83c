"""The states of a stored run: code and database read the same one, and the table is whole."""

import asyncio
import itertools
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from dbos import DBOSClient, DBOSPortableJSONSerializer

from app.runs.model import Outcome
from app.runs.tasks import TaskStatus
from app.tasks import rows, states
from app.tasks.queries import Queries
from app.tasks.states import ENDS, LIVE, TRANSITIONS, By, RunState, in_state, state_of
from app.tasks.store import Store
from app.tasks.tables import Tables
from tests.service import served
from tests.tasks.background import quick, url_in

STATUSES = (
    "ENQUEUED",
    "PENDING",
    "CANCELLED",
    "SUCCESS",
    "ERROR",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED",
)
TOKENS = (None, "mine", "other")
OUTCOMES = (None, *(outcome.value for outcome in Outcome), "budget_limit", "of a later version")
LONG_AGO = 1.0


class Rows:
    """Rows of the engine's table, put there as no process would."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.tables = Tables(is_file=self.store.is_file)
        self.queries = Queries(self.tables, self.store.calls)
        self.client = DBOSClient(
            system_database_engine=self.store.calls, serializer=DBOSPortableJSONSerializer()
        )

    def add(self, status: str, token: str | None, attributes: dict[str, Any] | None) -> str:
        """A run whose row is so."""
        task_id = str(uuid.uuid4())
        self.client.enqueue(
            {"workflow_name": "a", "queue_name": "a", "workflow_id": task_id, "attributes": {}}, {}
        )
        run = self.tables.runs
        values = {"status": status, "owner_xid": token, "attributes": attributes}
        with self.store.calls.begin() as connection:
            connection.execute(sa.update(run).where(run.c.workflow_uuid == task_id).values(values))
        return task_id

    def found(self, state: RunState) -> set[str]:
        """The runs that the database finds in a state."""
        run = self.tables.runs
        chosen = sa.select(run.c.workflow_uuid).where(in_state(self.tables, state))
        with self.store.calls.connect() as connection:
            return set(connection.execute(chosen).scalars())


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    """A store with every table, in which each kind of row is once."""
    url = url_in(tmp_path_factory.mktemp("states"))

    async def once() -> None:
        async with served({"quick": quick()}, store_url=url):
            pass

    asyncio.run(once())
    made = Rows(url)
    yield made
    made.client.destroy()
    made.store.close()


def kinds() -> Iterator[tuple[str, str | None, dict[str, Any] | None]]:
    """Every kind of row: a status, a token, and attributes that may be missing or null."""
    for status in STATUSES:
        yield status, None, None
        yield status, None, {}
    started: tuple[dict[str, Any], ...] = (
        {},
        {rows.STARTED_TOKEN: None},
        {rows.STARTED_TOKEN: "mine"},
    )
    for token, attributes in itertools.product(TOKENS, started):
        yield "PENDING", token, attributes
    finished: tuple[dict[str, Any], ...] = (
        {},
        {rows.FINISHED: LONG_AGO},
        {rows.FINISHED: time.time() + 600},
    )
    stuck: tuple[dict[str, Any], ...] = (
        {},
        {rows.STUCK: None},
        {rows.STUCK: False},
        {rows.STUCK: True},
    )
    lost: tuple[dict[str, Any], ...] = ({}, {rows.LOST: True})
    for one, two, three in itertools.product(finished, stuck, lost):
        yield "CANCELLED", None, {**one, **two, **three}
    for outcome in OUTCOMES:
        yield "SUCCESS", None, {rows.OUTCOME: outcome}


def test_code_and_database_read_the_same_state(table: Rows) -> None:
    """A row is in one state, and the database finds it in that state and in no other."""
    ids = [table.add(*kind) for kind in kinds()]
    found = {row["workflow_uuid"]: state_of(row) for row in table.queries.rows(ids)}
    for state in RunState:
        expected = {task_id for task_id, read in found.items() if read is state}
        assert table.found(state) & set(ids) == expected, state
    assert set(found.values()) == set(RunState) - {RunState.WAITING, RunState.EXPIRED}


def test_many_states_are_found_as_each_of_them(table: Rows) -> None:
    """The condition of many states, which an index serves, finds what those of each find."""
    some = (RunState.QUEUED, RunState.CLAIMED, RunState.RUNNING, RunState.FAILED)
    chosen = sa.select(table.tables.runs.c.workflow_uuid).where(in_state(table.tables, *some))
    with table.store.calls.connect() as connection:
        found = set(connection.execute(chosen).scalars())
    assert found == set.union(*(table.found(state) for state in some))


def test_cancellation_is_final_once_its_time_is_over(table: Rows) -> None:
    """Both readers use the clock of the database, whatever the clock of the process says."""
    row = table.queries.row(table.add("CANCELLED", None, {}))
    assert row is not None
    for age_s, state in (
        (states.UNREPORTED_AFTER_S - 1, RunState.CANCELLING),
        (states.UNREPORTED_AFTER_S + 1, RunState.UNREPORTED),
    ):
        aged = {**row, "attributes": {rows.FINISHED: row["now"] - age_s}}
        assert state_of(aged) is state
        task_id = table.add("CANCELLED", None, aged["attributes"])
        assert task_id in table.found(state)


def test_table_of_transitions_is_whole() -> None:
    """Every state can be reached and left, and only the owner's end overrides a cancellation."""
    assert {state for made in TRANSITIONS for state in made.targets} == set(RunState)
    assert {state for made in TRANSITIONS for state in made.sources} == set(RunState)
    for made in TRANSITIONS:
        if set(made.sources) & set(ENDS):
            assert made.targets == ()
        if RunState.CANCELLING in made.sources and made.by != (By.TIME,):
            assert By.CALLER not in made.by


def test_statuses_of_states() -> None:
    """A state has ended for callers if and only if its status has."""
    for state in RunState:
        assert state.as_status.ended is state.is_final, state
        assert state.is_live is (state in LIVE)
    assert {state.as_status for state in RunState} == set(TaskStatus)
