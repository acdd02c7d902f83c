"""Slots: background runs, callers and agents do not block each other."""

import asyncio
from pathlib import Path

from app.tasks.engine import Engine
from tests import fakes
from tests.service import served
from tests.tasks.background import Held, calling, ended, quick, submit, url_in, view


async def test_background_runs_leave_slots_for_callers(tmp_path: Path) -> None:
    """However many background runs execute, a waiting caller finds a slot."""
    tools = fakes.ToolDesk(60.0)
    agents = {"slow": calling("nap", tools), "quick": quick()}
    limits = {"max_running_runs": 1, "max_queued_runs": 0}
    async with served(agents, store_url=url_in(tmp_path), **limits) as desk:
        for _ in range(3):
            await submit(desk, agent="slow")
        assert len(await tools.started_calls(3)) == 3
        assert (await desk.ask(agent="quick")).status_code == 200


async def test_full_agent_blocks_no_other_agent(tmp_path: Path) -> None:
    """Runs of an agent without a free slot wait; runs of other agents do not."""
    tools = fakes.ToolDesk(60.0)
    agents = {"slow": calling("nap", tools), "quick": quick()}
    async with served(agents, store_url=url_in(tmp_path), max_background_runs=1) as desk:
        waiting = [await submit(desk, agent="slow") for _ in range(3)]
        await tools.started_calls()
        assert (await ended(desk, await submit(desk, agent="quick")))["status"] == "completed"
        states = [(await view(desk, task_id))["status"] for task_id in waiting]
        assert sorted(states) == ["pending", "pending", "running"]
        assert states[0] == "running"


async def test_draining_process_starts_no_run(tmp_path: Path) -> None:
    """A run submitted to a draining process waits for the next one; its deadline does not run."""
    agents, store = {"quick": quick()}, url_in(tmp_path)
    async with served(agents, store_url=store) as desk:
        assert isinstance(desk.service.engine, Engine)
        desk.service.engine.stop_taking_runs()
        task_id = await submit(desk, timeout=3.0)
        task = await view(desk, task_id, 3.5)
        assert (task["status"], task["attempts"]) == ("pending", 0)
    async with served(agents, store_url=store) as desk:
        task = await ended(desk, task_id)
        assert (task["status"], task["attempts"]) == ("completed", 1)


async def test_rejected_run_frees_its_key(tmp_path: Path) -> None:
    """A run that found no slot leaves its key free."""
    payload, headers = {"question": "hello"}, {"Idempotency-Key": "refused"}
    naps = Held()
    limits = {"max_running_runs": 1, "max_queued_runs": 0}
    async with served({"a": calling("nap", naps)}, store_url=url_in(tmp_path), **limits) as full:
        first = asyncio.create_task(full.ask())
        await naps.started_calls()
        refused = await full.client.post("/agent", json=payload, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        naps.release()
        assert (await first).status_code == 200
        again = await full.client.post("/agent", json=payload, headers=headers)
        assert (again.status_code, "idempotent-replay" in again.headers) == (200, False)
