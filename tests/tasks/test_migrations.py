"""A process brings the tables of every earlier version to its own, and leaves newer ones alone."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.runs.errors import InFlight
from app.tasks import schema
from app.tasks.conversations import ConversationStore
from app.tasks.idempotency import IdempotencyKeyStore
from app.tasks.migrations import MIGRATIONS, Migration, MigrationFailed, migrate
from app.tasks.store import Store
from tests.command import ROOT
from tests.service import served
from tests.tasks.background import ended, quick, submit, url_in

LATEST = MIGRATIONS[-1].number
# The tables as the first version created them, and as it wrote to them.
FIRST_VERSION = (
    """CREATE TABLE watchkeeper_threads (
        agent TEXT NOT NULL, thread_id TEXT NOT NULL, said TEXT, held_by TEXT,
        held_until FLOAT NOT NULL, updated_at FLOAT NOT NULL, PRIMARY KEY (agent, thread_id))""",
    """CREATE TABLE watchkeeper_keys (
        key TEXT NOT NULL, fingerprint TEXT NOT NULL, held_by TEXT NOT NULL,
        held_until FLOAT NOT NULL, body TEXT, PRIMARY KEY (key))""",
)
LEASE_A_THREAD = """
    INSERT INTO watchkeeper_threads (agent, thread_id, held_by, held_until, updated_at)
    VALUES ('a', 't', 'older', 9e9, 9e9) ON CONFLICT (agent, thread_id)
    DO UPDATE SET held_by = 'older', held_until = 9e9 WHERE watchkeeper_threads.held_by IS NULL
    RETURNING 1"""
LEASE_A_KEY = """
    INSERT INTO watchkeeper_keys (key, fingerprint, held_by, held_until, body)
    VALUES ('k', 'same', 'older', 9e9, NULL) ON CONFLICT (key)
    DO UPDATE SET held_by = 'older', held_until = 9e9, body = NULL, fingerprint = 'same'
    WHERE watchkeeper_keys.held_until < 1e9 RETURNING 1"""
ROWS = (
    "INSERT INTO watchkeeper_threads (agent, thread_id, said, held_by, held_until, updated_at)"
    " VALUES ('a', 'known', '[]', NULL, 0, 9e9), ('a', 'held', NULL, 'another', 9e9, 9e9)",
    "INSERT INTO watchkeeper_keys (key, fingerprint, held_by, held_until, body)"
    """ VALUES ('done', 'same', 'x', 9e9, '{"answer": "1"}'), ('open', 'same', 'x', 9e9, NULL)""",
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(url_in(tmp_path))
    store.prepare()
    yield store
    store.close()


def execute(store: Store, *statements: str) -> list[Any]:
    """Execute statements in one transaction; the rows of each that has any."""
    with store.worker.begin() as connection:
        results = [connection.exec_driver_sql(statement) for statement in statements]
        return [tuple(row) for result in results if result.returns_rows for row in result]


def numbers(store: Store) -> list[int]:
    rows = execute(store, "select number from watchkeeper_migrations order by number")
    return [number for (number,) in rows]


def tables(store: Store) -> set[str]:
    return {name for name in sa.inspect(store.calls).get_table_names() if "watchkeeper" in name}


def leave_version(store: Store, version: int) -> None:
    """Leave the tables and rows of a version; the first one has no record of migrations."""
    if version:
        execute(store, *FIRST_VERSION, *ROWS)
    if version > 1:
        migrate(store, MIGRATIONS[:version])


@pytest.mark.parametrize("version", range(LATEST))
async def test_store_of_every_version_is_migrated(store: Store, version: int) -> None:
    """At the next start all rows are still there, and runs can use them."""
    await asyncio.to_thread(leave_version, store, version)
    url = store.url.render_as_string(hide_password=False)
    for _ in range(2):  # the second time there is nothing to do
        async with served({"a": quick()}, store_url=url) as desk:
            await ended(desk, await submit(desk, thread_id="t"))
            threads, keys = ConversationStore(store), IdempotencyKeyStore(store)
            if version:
                assert await threads.read("a", "known") == "[]"
                assert await keys.acquire("done", "same", "run", 60) == {"answer": "1"}
                with pytest.raises(InFlight):
                    await keys.acquire("open", "same", "run", 60)
                await threads.acquire("a", "known", "run", 60)
                await threads.write("a", "known", "run", "[]")
                await threads.release("a", "known", "run")
    assert await asyncio.to_thread(numbers, store) == [each.number for each in MIGRATIONS]


def test_tables_are_those_that_the_statements_name(store: Store) -> None:
    """Migrations create every column that the code knows, of the same type and nullability."""
    migrate(store)
    for table in schema.THREADS, schema.KEYS:
        found = {each["name"]: each for each in sa.inspect(store.calls).get_columns(table.name)}
        assert found.keys() == {column.name for column in table.columns}
        for column in table.columns:
            stored = found[column.name]
            assert stored["nullable"] == column.nullable, column
            assert stored["type"]._type_affinity is column.type._type_affinity, column


def test_older_version_goes_on_beside_this_one(store: Store) -> None:
    """After migrations the statements of the first version acquire a lease, and only one."""
    leave_version(store, 1)
    migrate(store)
    assert execute(store, LEASE_A_THREAD, LEASE_A_KEY) == [(1,), (1,)]
    assert execute(store, LEASE_A_THREAD, LEASE_A_KEY) == []


async def test_newer_version_may_replace_the_unique_keys(store: Store) -> None:
    """This version goes on with keys that begin with the tenant, and sees no other tenant."""
    await asyncio.to_thread(migrate, store)
    new_keys = (
        "alter table {0} rename to {0}_old",
        "create table {0} as select * from {0}_old",
        "drop table {0}_old",
        "create unique index {0}_new on {0} (tenant, {1})",
    )
    for table, columns in ("threads", "agent, thread_id"), ("keys", "key"):
        statements = [each.format(f"watchkeeper_{table}", columns) for each in new_keys]
        await asyncio.to_thread(execute, store, *statements)
    await asyncio.to_thread(
        execute,
        store,
        "create table if not exists workflow_status (workflow_uuid text, status text)",
        "insert into watchkeeper_threads (tenant, agent, thread_id, said, held_until, updated_at)"
        " values ('other', 'a', 't', 'a secret', 0, 0)",
        "insert into watchkeeper_keys (tenant, key, fingerprint, held_by, held_until)"
        " values ('other', 'k', 'other', 'x', 9e9)",
    )
    threads, keys = ConversationStore(store), IdempotencyKeyStore(store)
    for run_id in ("one", "two"):
        await threads.acquire("a", "t", run_id, 60)
        assert await keys.acquire("k", "same", run_id, 60) is None
        await threads.release("a", "t", run_id)
        await keys.release("k", run_id)
    assert await threads.read("a", "t") is None
    rows = "select said from watchkeeper_threads where tenant = 'other'"
    assert await asyncio.to_thread(execute, store, rows) == [("a secret",)]


async def test_migrations_of_a_newer_version_are_ignored(tmp_path: Path) -> None:
    """An older process starts on a newer store, beside what it does not know."""
    url = url_in(tmp_path)
    newer = Migration(LATEST + 7, ("create table watchkeeper_later (id text)",))
    store = await asyncio.to_thread(Store, url)
    await asyncio.to_thread(store.prepare)
    await asyncio.to_thread(migrate, store, (*MIGRATIONS, newer))
    async with served({"a": quick()}, store_url=url) as desk:
        task = await ended(desk, await submit(desk, thread_id="t"))
        assert task["status"] == "completed"
    assert (await asyncio.to_thread(numbers, store))[-1] == LATEST + 7
    assert "watchkeeper_later" in await asyncio.to_thread(tables, store)
    await asyncio.to_thread(store.close)


def test_migration_that_fails_changes_nothing(store: Store) -> None:
    """Neither its number nor its first statements stay, and a later start applies it anew."""
    good = "create table watchkeeper_later (id text)"
    migrate(store)
    before = numbers(store), tables(store)
    with pytest.raises(MigrationFailed, match=f"migration {LATEST + 1} .* changed nothing"):
        migrate(store, (*MIGRATIONS, Migration(LATEST + 1, (good, "create nothing"))))
    assert (numbers(store), tables(store)) == before
    migrate(store, (*MIGRATIONS, Migration(LATEST + 1, (good,))))
    assert numbers(store)[-1] == LATEST + 1


def test_processes_that_start_at_once_apply_each_migration_once(store: Store) -> None:
    """Each waits for the one that opens the store, and all of them start."""
    leave_version(store, 1)
    url = store.url.render_as_string(hide_password=False)
    program = (
        "import sys; from app.tasks.store import Store; from app.tasks.migrations import migrate\n"
        "store = Store(sys.argv[1])\nwith store.alone():\n    migrate(store)\n"
    )
    command = [sys.executable, "-c", program, url]
    started = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert numbers(store) == [each.number for each in MIGRATIONS]
    assert execute(store, "select count(*) from watchkeeper_threads") == [(2,)]
