"""The service deletes what is older than `keep_tasks_s`, with all that belongs to it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from app.tasks.ownership import HELD
from langgraph.checkpoint.base import empty_checkpoint

from app.agents import checkpoints
from app.tasks.store import Store
from tests import fakes
from tests.service import Served, served
from tests.tasks.background import LONG_S, calling, ended, post, quick, submit, url_in, view

KEEP_S = 600
HOUR_S = 3600
COPIES = 1_200  # more than two batches


class Rows:
    """The tables behind a service, for what no request can do: let time pass, count rows."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self._schema = None if self.store.is_file else "dbos"
        self._known = sa.MetaData()
        self._known.reflect(self.store.calls, schema=self._schema)
        self._known.reflect(self.store.calls)

    def of(self, name: str) -> sa.Table:
        """A table by its name, whether it is the engine's or ours."""
        return next(table for table in self._known.tables.values() if table.name == name)

    def age(self, name: str, column: str, amount: float, which: dict[str, Any]) -> None:
        """Let the rows in which columns have these values be older."""
        table = self.of(name)
        chosen = sa.and_(*(table.c[key] == value for key, value in which.items()))
        older = sa.update(table).where(chosen).values({column: table.c[column] - amount})
        with self.store.calls.begin() as connection:
            assert connection.execute(older).rowcount >= 1, (name, which)

    def belonging_to(self, ids: Iterable[str]) -> dict[str, int]:
        """In which tables of the engine there are rows of these runs, and how many."""
        found, wanted = {}, list(ids)
        with self.store.calls.connect() as connection:
            for table in self._known.tables.values():
                if "workflow_uuid" in table.c:
                    mine = table.c.workflow_uuid.in_(wanted)
                    count = connection.execute(sa.select(sa.func.count()).where(mine)).scalar_one()
                    if count:
                        found[table.name] = count
        return found

    def keys(self) -> int:
        """How many keys of waiting callers are kept."""
        counted = sa.select(sa.func.count()).select_from(self.of("watchkeeper_keys"))
        with self.store.calls.connect() as connection:
            return int(connection.execute(counted).scalar_one())

    def first_key(self) -> str:
        """The key of a waiting caller that was taken first."""
        keys = self.of("watchkeeper_keys").c
        with self.store.calls.connect() as connection:
            chosen = sa.select(keys.key).order_by(keys.held_until).limit(1)
            return str(connection.execute(chosen).scalar_one())

    def copy(self, task_id: str, names: Iterable[str]) -> None:
        """Have the same run and its log under these names as well."""
        with self.store.calls.begin() as connection:
            for name in ("workflow_status", "streams"):
                table = self.of(name)
                columns = [column for column in table.c if column.name != "workflow_uuid"]
                chosen = sa.select(sa.bindparam("name", type_=sa.Text), *columns)
                same = chosen.where(table.c.workflow_uuid == task_id)
                into = ["workflow_uuid", *(column.name for column in columns)]
                copied = sa.insert(table).from_select(into, same)
                connection.execute(copied, [{"name": copy} for copy in names])


async def in_thread(work: Any, *args: Any) -> Any:
    return await asyncio.to_thread(work, *args)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it is so; fails when it takes very long."""
    end = time.monotonic() + LONG_S
    while not await condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.1)


async def wait_until_deleted(rows: Rows, ids: Iterable[str]) -> None:
    """Wait until nothing belongs to these runs any more."""

    async def are_deleted() -> bool:
        return not await in_thread(rows.belonging_to, ids)

    await eventually(are_deleted)


async def no_steps(url: str, run_id: str) -> bool:
    async with checkpoints.opened(url, HELD) as steps:
        return await steps.saver.aget_tuple({"configurable": {"thread_id": run_id}}) is None


async def leave_steps(url: str, *run_ids: str) -> None:
    """Leave steps behind, as a process does that dies when its run has just ended."""
    async with checkpoints.opened(url, HELD) as steps:
        for run_id in run_ids:
            config: Any = {"configurable": {"thread_id": run_id, "checkpoint_ns": ""}}
            await steps.saver.aput(config, empty_checkpoint(), {}, {})


def agents() -> dict[str, Any]:
    return {"quick": quick(), "slow": calling("nap", fakes.ToolDesk(60))}


async def ask(desk: Served, key: str) -> bool:
    """Ask with a key and wait; whether an old answer came."""
    headers = {"Idempotency-Key": key}
    response = await desk.client.post("/agent", json={"question": "hello"}, headers=headers)
    assert response.status_code == 200
    return "idempotent-replay" in response.headers


async def test_old_ended_runs_are_deleted_and_others_kept(tmp_path: Path) -> None:
    """Old ended runs are deleted with their log, steps and key; nothing else is."""
    url = url_in(tmp_path)
    async with served(agents(), store_url=url) as desk:
        old, young = [
            (await post(desk, key=name, thread_id=name)).json()["task_id"]
            for name in ("old", "young")
        ]
        limited = await submit(desk, max_iterations=1)
        for task_id in (old, young, limited):
            await ended(desk, task_id)
        cancelled, held = [await submit(desk, agent="slow", thread_id=n) for n in ("c", "held")]
        await desk.client.delete(f"/agent/async/{cancelled}")
        await ended(desk, cancelled)
        for key in ("past", "kept"):
            assert not await ask(desk, key)
    rows = await in_thread(Rows, url)
    await leave_steps(url, limited, young)
    for task_id in (old, limited, cancelled):
        for column in ("created_at", "completed_at"):
            which = {"workflow_uuid": task_id}
            await in_thread(rows.age, "workflow_status", column, HOUR_S * 1000, which)
    which = {"workflow_uuid": held}
    await in_thread(rows.age, "workflow_status", "created_at", HOUR_S * 1000, which)
    for thread in ("old", "held"):
        for column in ("updated_at", "held_until"):
            which = {"thread_id": thread}
            await in_thread(rows.age, "watchkeeper_threads", column, HOUR_S, which)
    past = {"key": await in_thread(rows.first_key)}
    await in_thread(rows.age, "watchkeeper_keys", "held_until", 25 * HOUR_S, past)
    assert set(await in_thread(rows.belonging_to, [old])) >= {"workflow_status", "streams"}

    async def only_one_key() -> bool:
        return bool(await in_thread(rows.keys) == 1)

    async with served(agents(), store_url=url, keep_tasks_s=KEEP_S) as desk:
        await wait_until_deleted(rows, [old, limited, cancelled])
        await eventually(only_one_key)  # the last of what goes, in a transaction with the threads
        for task_id in (old, limited, cancelled):
            assert (await desk.client.get(f"/agent/async/{task_id}")).status_code == 404
            assert (await desk.client.get(f"/agent/async/{task_id}/events")).status_code == 404
        assert (await view(desk, young))["status"] == "completed"
        assert (await view(desk, held))["status"] in ("pending", "running")
        listed = (await desk.client.get("/agent/async")).json()["tasks"]
        assert {task["task_id"] for task in listed} == {young, held}
        assert (await desk.client.get("/threads/old?agent=quick")).status_code == 404
        assert (await desk.client.get("/threads/young?agent=quick")).status_code == 200
        assert (await post(desk, agent="slow", thread_id="held")).status_code == 409
        again = [await post(desk, key=name, thread_id=name) for name in ("old", "young")]
        assert ["idempotent-replay" in response.headers for response in again] == [False, True]
        assert [await ask(desk, key) for key in ("past", "kept")] == [False, True]
        await eventually(lambda: no_steps(url, limited))
        assert not await no_steps(url, young)
        await desk.client.delete(f"/agent/async/{held}")
    await in_thread(rows.store.close)


async def test_more_than_one_batch_is_deleted_at_once(tmp_path: Path) -> None:
    """More than one batch is deleted long before the next interval."""
    url = url_in(tmp_path)
    async with served(agents(), store_url=url) as desk:
        old = await submit(desk)
        await ended(desk, old)
    rows = await in_thread(Rows, url)
    await in_thread(
        rows.age, "workflow_status", "completed_at", HOUR_S * 1000, {"workflow_uuid": old}
    )
    copies = [f"copy-{number}" for number in range(COPIES)]
    await in_thread(rows.copy, old, copies)
    assert (await in_thread(rows.belonging_to, copies))["workflow_status"] == COPIES
    async with served(agents(), store_url=url, keep_tasks_s=KEEP_S) as desk:
        await wait_until_deleted(rows, [old, *copies])
        assert (await desk.client.get("/agent/async")).json()["tasks"] == []
    await in_thread(rows.store.close)
