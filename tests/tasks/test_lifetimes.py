"""How long the store keeps steps, keys, threads and results, and what is deleted with a run."""

import asyncio
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from tests import fakes
from tests.service import Served, served, until
from tests.tasks.background import LONG_S, Held, calling, ended, post, quick, submit, url_in

DAY_S = 24 * 3600.0


def rows(folder: Path, query: str, file: str = "store.sqlite") -> list[Any]:
    """What a query of a file of the store gives."""
    with sqlite3.connect(folder / file) as store:
        return store.execute(query).fetchall()


def steps_of(folder: Path, task_id: str) -> int:
    """How many steps of a run are kept."""
    stored = rows(folder, "select thread_id from checkpoints", "store.steps")
    return stored.count((task_id,))


async def until_deleted(desk: Served, path: str) -> None:
    """Wait until there is nothing of that name any more."""
    end = time.monotonic() + LONG_S
    while (await desk.client.get(path)).status_code != 404:
        assert time.monotonic() < end
        await asyncio.sleep(0.1)


async def ask(desk: Served, agent: str, **body: Any) -> Any:
    """POST to an agent that is waited for, with one and the same key."""
    payload = {"question": "hello", **body}
    return await desk.client.post(
        f"/agents/{agent}", json=payload, headers={"Idempotency-Key": "one"}
    )


async def test_steps_are_deleted_when_a_run_ends(tmp_path: Path) -> None:
    """The store keeps the steps of a graph only while its run is at work."""
    tools = Held()
    async with served({"a": calling("nap", tools)}, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk)
        await tools.started_calls()
        assert steps_of(tmp_path, task_id)
        tools.release()
        await ended(desk, task_id)
        await until(lambda: not steps_of(tmp_path, task_id), 20)


async def test_steps_are_deleted_with_their_run(tmp_path: Path) -> None:
    """Deleting a run that was cancelled without a process deletes its steps."""
    tools = fakes.ToolDesk(60.0)
    store: dict[str, Any] = {"store_url": url_in(tmp_path)}
    async with served({"slow": calling("nap", tools)}, **store) as desk:
        task_id = await submit(desk)
        await tools.started_calls()
    async with served({"quick": quick()}, **store) as desk:
        stopped = await desk.client.delete(f"/agent/async/{task_id}")
        assert stopped.json()["result"] == "cancelled"
        assert steps_of(tmp_path, task_id)
    async with served({"quick": quick()}, **store, keep_tasks_s=0.01) as desk:
        await until_deleted(desk, f"/agent/async/{task_id}")
        await until(lambda: not steps_of(tmp_path, task_id), 20)


async def test_answer_is_replayed_for_a_day(tmp_path: Path) -> None:
    """An answer is replayed for 24 hours; a key in flight is held for the run's time and 5 s."""
    tools = Held()
    held = "select held_until, body is null from watchkeeper_keys"
    async with served({"slow": calling("nap", tools)}, store_url=url_in(tmp_path)) as desk:
        began = time.time()
        asking = asyncio.create_task(ask(desk, "slow", timeout=20.0))
        await tools.started_calls()
        [(until_s, in_flight)] = rows(tmp_path, held)
        assert in_flight
        assert 25 <= until_s - began < 25 + 20
        tools.release()
        await asking
        [(until_s, in_flight)] = rows(tmp_path, held)
        assert not in_flight
        assert DAY_S <= until_s - began < DAY_S + 60


async def test_background_run_holds_its_thread_to_its_end(tmp_path: Path) -> None:
    """A background run holds its thread until it ends, however long it takes."""
    tools = fakes.ToolDesk(60.0)
    async with served({"slow": calling("nap", tools)}, store_url=url_in(tmp_path)) as desk:
        first = await submit(desk, thread_id="t")
        await tools.started_calls()
        with sqlite3.connect(tmp_path / "store.sqlite") as store:
            store.execute("update watchkeeper_threads set held_until = 1")
        assert (await post(desk, thread_id="t")).status_code == 409
        await desk.client.delete(f"/agent/async/{first}")
        assert (await post(desk, thread_id="t")).status_code == 202


async def test_submissions_are_stored_as_plain_json(tmp_path: Path) -> None:
    """A submission is JSON that later versions can read; loading it runs no code."""
    async with served({"a": quick()}, store_url=url_in(tmp_path)) as desk:
        await ended(desk, await submit(desk, "plainly"))
    [(stored,)] = rows(tmp_path, "select inputs from workflow_input")
    [(output,)] = rows(tmp_path, "select output from workflow_output")
    assert "plainly" in str(json.loads(stored))
    assert json.loads(output)["outcome"] == "completed"


async def test_steps_that_cannot_be_stored_fail_as_store_unavailable(tmp_path: Path) -> None:
    """If the store takes no steps until the deadline, the run fails as `store_unavailable`."""
    tools = Held()
    async with served({"a": calling("nap", tools)}, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk, timeout=3.0)
        await tools.started_calls()
        with sqlite3.connect(tmp_path / "store.steps") as steps:
            steps.execute("alter table checkpoints rename to gone")
        tools.release()
        task = await ended(desk, task_id)
    assert (task["status"], task["error"]["code"]) == ("failed", "store_unavailable")
    assert task["error"]["retryable"] is False  # its tool had begun, and nothing names a repeat


@pytest.mark.parametrize("asked_for", [True, False])
async def test_tool_content_is_stored_only_if_asked_for(asked_for: bool, tmp_path: Path) -> None:
    """The log of a run has the arguments and results of tools only with `include_steps`."""
    async with served({"a": quick()}, store_url=url_in(tmp_path)) as desk:
        task = await ended(desk, await submit(desk, include_steps=asked_for))
    log = [json.loads(value) for (value,) in rows(tmp_path, "select value from streams")]
    [step] = [step for row in log for step in row["progress"]["steps"]]
    content = (step["arguments"], step["result"])
    assert content == (({"order": "7"}, "order 7 shipped") if asked_for else (None, None))
    assert ("order 7" in str(task["result"]["steps"])) is asked_for
    stored_events = [event for row in log for event in row["events"] if event[0] != "token"]
    assert "shipped" not in str(stored_events)
