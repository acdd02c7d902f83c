"""Background runs whose code asks the process to exit end once and are not taken over."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from app.runs.events import RunHandedOver, RunRecovered, RunStarted
from tests import exits, fakes
from tests.exits import EXITS
from tests.service import Served, served
from tests.tasks.background import ended, quick, submit, url_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLACES = ("node", "node-thread", "gather", "model", "callback", "tool")


def _agents() -> dict[str, Any]:
    agents: dict[str, Any] = {"quick": quick()}
    for how, leave in EXITS.items():
        found = exits.places(leave)
        found["tool"] = exits.tool_that_leaves(leave, fakes.KINDS[0], thread=True)
        agents |= {f"{place}-{how}": found[place] for place in PLACES}
    return agents


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("exits")
    async with served(
        _agents(), store_url=url_in(folder), background_timeout_s=120, data_dir=folder
    ) as service:
        yield service


@pytest.mark.parametrize("how", [name for name in EXITS if name != "exit"])
async def test_run_ends_once_as_failed(desk: Served, how: str) -> None:
    """Such runs end as failed, each in its first attempt, and other runs go on."""
    task_ids = [await submit(desk, agent=f"{place}-{how}") for place in PLACES]
    tasks = await asyncio.gather(*(ended(desk, task_id) for task_id in task_ids))
    ends = {(run["status"], run["attempts"], run["error"]["code"]) for run in tasks}
    assert ends == {("failed", 1, "agent_failed")}
    for task_id in task_ids:
        assert len([f for f in desk.facts_of(RunStarted) if f.run_id == task_id]) == 1
        desk.end_of(task_id)
    assert desk.facts_of(RunHandedOver) == desk.facts_of(RunRecovered) == []
    assert (await ended(desk, await submit(desk, agent="quick")))["status"] == "completed"


async def test_exit_in_a_tool_fails_the_tool(desk: Served) -> None:
    """A tool that calls sys.exit() fails as a tool; anywhere else the run fails."""
    task_ids = {place: await submit(desk, agent=f"{place}-exit") for place in PLACES}
    tasks = {place: await ended(desk, task_id) for place, task_id in task_ids.items()}
    ends = {place: (run["status"], run["attempts"]) for place, run in tasks.items()}
    assert ends == dict.fromkeys(PLACES, ("failed", 1)) | {"tool": ("completed", 1)}
