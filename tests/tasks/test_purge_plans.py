"""What is read all the time, or deleted each minute, is found by an index."""

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app.tasks.batches import BatchWriter
from app.tasks.conversations import ConversationStore
from app.tasks.idempotency import IdempotencyKeyStore
from app.tasks.queries import Queries
from app.tasks.store import Store
from app.tasks.tables import Tables
from app.tasks.transitions import Claim
from tests.service import served
from tests.tasks.background import quick, url_in

HOUR_S = 3600
# Rows 1 to 50 of each table are old, all others young.
MANY = """
    with recursive numbers(i) as (select 1 union all select i + 1 from numbers where i < 20000)
    insert into {table} ({columns}) select {values} from numbers"""
AGE = "case when i <= 50 then {old} else {young} end"


def fill(store: Store, table: str, columns: str, values: str, old: int, young: int) -> None:
    """Have twenty thousand rows in a table, of which the database knows the distribution."""
    age = AGE.format(old=old, young=young)
    statement = MANY.format(table=table, columns=columns, values=values.format(age=age))
    with store.worker.begin() as connection:
        connection.exec_driver_sql(statement)
        connection.exec_driver_sql("analyze")


def plans(store: Store, work: Callable[[], Any]) -> str:
    """The plans of all statements that `work` executes for callers."""
    executed: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        executed.append((statement, parameters))

    sa.event.listen(store.calls, "before_cursor_execute", note)
    work()
    sa.event.remove(store.calls, "before_cursor_execute", note)
    explain = "explain query plan " if store.is_file else "explain "
    lines = []
    with store.calls.connect() as connection:
        for statement, parameters in executed:
            rows = connection.exec_driver_sql(explain + statement, parameters)
            lines += [str(row[-1]) for row in rows]
    return "\n".join(lines)


async def test_indexes_find_what_each_round_reads(tmp_path: Path) -> None:
    """What processes look at twice a second is no scan of the ended runs, nor is a batch's look."""
    url = url_in(tmp_path)
    async with served({"a": quick()}, store_url=url):
        store = await asyncio.to_thread(Store, url)
        await asyncio.to_thread(look_at_rounds, store)
        await asyncio.to_thread(store.close)


def look_at_rounds(store: Store) -> None:
    """Fill the table of runs, and look at the plans of what is read all the time."""
    ended_runs(store)
    tables = Tables(is_file=store.is_file)
    queries = Queries(tables, store.calls)
    writer = BatchWriter(store, tables)
    claims = [Claim(store, tables, f"run{number}", "t", "p") for number in (1, 2)]

    def own() -> None:
        with store.calls.connect() as connection:
            writer._lost(connection, claims, lock=False)

    for work in (queries.processes, lambda: queries.claimed_by("a"), queries.overdue, own):
        plan = plans(store, work)
        assert not re.search("SCAN workflow_status(?! USING INDEX)", plan)
        assert "Seq Scan on workflow_status" not in plan


async def test_indexes_find_what_is_deleted(tmp_path: Path) -> None:
    """Old runs, conversations and keys: no scan of their table."""
    url = url_in(tmp_path)
    async with served({"a": quick()}, store_url=url):
        store = await asyncio.to_thread(Store, url)
        await asyncio.to_thread(look, store)
        await asyncio.to_thread(store.close)


def ended_runs(store: Store) -> tuple[int, int]:
    """Have many runs that have ended. Returns when the young and when the old ones did."""
    young, old = int(time.time()), int(time.time()) - HOUR_S
    fill(
        store,
        "workflow_status" if store.is_file else "dbos.workflow_status",
        "workflow_uuid, status, name, created_at, updated_at, completed_at",
        "'run' || i, 'SUCCESS', 'a', 1, 1, {age}",
        old * 1000,
        young * 1000,
    )
    return young, old


def look(store: Store) -> None:
    """Fill each table, and look at the plan of what deletes its old rows."""
    young, old = ended_runs(store)
    threads = "agent, thread_id, held_until, updated_at"
    fill(store, "watchkeeper_threads", threads, "'a', 't' || i, 0, {age}", old, young)
    keys = "key, fingerprint, held_by, held_until"
    fill(store, "watchkeeper_keys", keys, "'k' || i, '', '', {age}", old, young + HOUR_S)
    queries = Queries(Tables(is_file=store.is_file), store.calls)
    for index, work in {
        "idx_workflow_status_completed_at": lambda: queries.ended_before(HOUR_S / 2, 500),
        "watchkeeper_threads_updated": lambda: ConversationStore(store).purge(HOUR_S / 2),
        "watchkeeper_keys_held": lambda: IdempotencyKeyStore(store).purge(),
    }.items():
        plan = plans(store, work)
        assert index in plan
        assert "SCAN watchkeeper" not in plan
