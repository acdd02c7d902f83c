"""Cancelling a background run stops it and returns what really happened."""

from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio
from langchain_core.messages import AIMessage, BaseMessage

from tests import fakes
from tests.service import Served, served, until
from tests.tasks.background import Held, calling, ended, submit, url_in, view

pytestmark = pytest.mark.asyncio(loop_scope="module")
DESK = Held()


def looks_up_a_nul(messages: Sequence[BaseMessage]) -> AIMessage:
    """Look up an order named NUL, then nap."""
    if fakes.results_since_question(messages):
        return fakes.asks("nap", {}, number=1)
    return fakes.asks("look", {"order": "\0"})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    agents = {tool: calling(tool, DESK) for tool in ("nap", "block", "stubborn", "look")}
    agents["odd"] = fakes.build(
        "create_agent", fakes.ScriptedModel(script=looks_up_a_nul), DESK.tools()
    )
    store = url_in(tmp_path_factory.mktemp("cancel"))
    async with served(agents, store_url=store, max_background_runs=2) as service:
        yield service
        DESK.release()


@pytest.fixture(autouse=True)
def held() -> None:
    """Tools work until a test releases them."""
    DESK.hold()


async def started(desk: Served, tool: str) -> str:
    """A run whose tool has begun."""
    before = DESK.started.count(tool)
    task_id = await submit(desk, agent=tool)
    await DESK.started_calls(before + 1, tool)
    return task_id


@pytest.mark.parametrize("path", ["/agent/async/{}", "/runs/{}"])
async def test_cancel_stops_an_executing_run(desk: Served, path: str) -> None:
    """Its tool is cancelled, and the run has ended when the answer comes."""
    before = len(DESK.cancelled)
    task_id = await started(desk, "nap")
    response = await desk.client.delete(path.format(task_id))
    assert response.status_code == 200
    assert response.json() == {"run_id": task_id, "result": "cancelled"}
    assert response.headers["x-run-id"] == task_id
    assert len(DESK.cancelled) == before + 1
    task = await ended(desk, task_id)
    assert (task["status"], task["error"]["code"]) == ("cancelled", "cancelled")
    assert task["error"]["phase"] == "tool:nap"
    assert desk.end_of(task_id).outcome == "cancelled"
    again = await desk.client.delete(path.format(task_id))
    assert (again.status_code, again.json()["result"]) == (200, "already_finished")
    assert await view(desk, task_id) == task


@pytest.mark.parametrize("tool", ["block", "stubborn"])
async def test_cancel_of_work_that_cannot_be_stopped_is_202(desk: Served, tool: str) -> None:
    """A tool on a thread, or one that swallows its cancellation, is still stopping: 202."""
    task_id = await started(desk, tool)
    response = await desk.client.delete(f"/agent/async/{task_id}")
    assert response.status_code == 202
    assert response.json() == {"run_id": task_id, "result": "still_stopping"}
    assert (await ended(desk, task_id))["status"] == "cancelled"
    finished = DESK.finished.count(tool)
    again = await desk.client.delete(f"/agent/async/{task_id}")
    assert (again.status_code, again.json()["result"]) == (202, "still_stopping")
    DESK.release()
    await DESK.finished_calls(finished + 1, tool)
    assert (await view(desk, task_id))["status"] == "cancelled"
    run = desk.service.runner.find(task_id)
    assert run is not None
    await until(lambda: not desk.service.runner.is_stuck(run), 20)  # a moment after its tool
    last = await desk.client.delete(f"/agent/async/{task_id}")
    assert (last.status_code, last.json()["result"]) == (200, "already_finished")


@pytest.mark.parametrize("path", ["/agent/async/{}", "/runs/{}"])
async def test_cancel_of_an_ended_run_changes_nothing(desk: Served, path: str) -> None:
    """Nothing is left to cancel, and the result stays."""
    task_id = await submit(desk, agent="look")
    before = await ended(desk, task_id)
    for _ in range(2):
        response = await desk.client.delete(path.format(task_id))
        assert (response.status_code, response.json()["result"]) == (200, "already_finished")
    assert await view(desk, task_id) == before
    assert before["status"] == "completed"


async def test_cancelled_queued_run_never_starts(desk: Served) -> None:
    """A run cancelled in the queue is over at once, and no process starts it."""
    holding = [await started(desk, "nap") for _ in range(2)]
    naps = len(DESK.started)
    waiting = await submit(desk, agent="nap")
    response = await desk.client.delete(f"/agent/async/{waiting}")
    assert (response.status_code, response.json()["result"]) == (200, "cancelled")
    task = await view(desk, waiting)
    assert (task["status"], task["attempts"], task["started_at"]) == ("cancelled", 0, None)
    assert (task["error"]["code"], task["error"]["run_id"]) == ("cancelled", waiting)
    assert task["created_at"] <= task["finished_at"]
    await desk.finished(waiting)
    end = desk.end_of(waiting)
    assert (end.outcome, end.mode, str(end.phase)) == ("cancelled", "background", "queue")
    DESK.release()
    for task_id in holding:
        assert (await ended(desk, task_id))["status"] == "completed"
    last = await submit(desk, agent="look")
    await ended(desk, last)
    assert len(DESK.started) == naps + 1


async def test_cancel_of_an_unknown_run_is_404(desk: Served) -> None:
    """An unknown run is 404."""
    response = await desk.client.delete("/agent/async/nobody")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_steps_of_a_cancelled_run_are_returned_if_asked_for(desk: Served) -> None:
    """The steps of a cancelled run are returned if asked for, a NUL included."""
    before = DESK.started.count("nap")
    task_id = await submit(desk, agent="odd", include_steps=True)
    await DESK.started_calls(before + 1, "nap")
    assert (await desk.client.delete(f"/agent/async/{task_id}")).status_code == 200
    problem = (await ended(desk, task_id))["error"]
    assert [step["result"] for step in problem["steps"]] == ["order \0 shipped", None]
