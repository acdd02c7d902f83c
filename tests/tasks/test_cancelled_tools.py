"""A tool call that is open when its run is handed over is cut, and repeated by the next process."""

from pathlib import Path
from typing import Any

import pytest

from app.runs.events import ToolCallFinished
from tests import fakes
from tests.service import served
from tests.tasks.background import Held, calling, ended, events, submit, url_in, view
from tests.telemetry.watched import parsed

DURATIONS = "agent_tool_call_duration_seconds_count"


@pytest.mark.parametrize("kind", fakes.KINDS)
@pytest.mark.parametrize("tool", ["nap", "block", "stubborn"])
async def test_cut_tool_call_is_reported_as_cancelled(
    tool: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is reported as cancelled, which is no error; readers see one call with one id."""
    monkeypatch.setattr("app.runs.runner.GRACE_S", 0.1)  # whether it stops in time is all the same
    tools = Held()
    agents = {"a": calling(tool, tools, kind)}
    async with served(agents, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk, include_steps=True)
        await tools.started_calls()
        await desk.service.runner.drain(0.0, 0.0)
        [cut] = desk.facts_of(ToolCallFinished)
        samples = parsed(await desk.client.get("/metrics"))
        assert (await view(desk, task_id))["status"] in ("pending", "running")
    assert cut.outcome == "cancelled"
    assert samples.nonzero(DURATIONS, agent="a", tool=tool) == {("cancelled",): 1.0}
    tools.release()
    async with served(agents, store_url=url_in(tmp_path)) as desk:
        result = (await ended(desk, task_id))["result"]
        story = await events(desk, task_id)
        known = (await desk.client.get(f"/runs/{task_id}")).json()
    call_ids = {event.data["call_id"] for event in story if event.name == "tool_start"}
    assert [event.data["outcome"] for event in story if event.name == "tool_end"] == ["completed"]
    assert result["tool_calls"] == known["tool_calls"] == 1
    for steps in (result["steps"], known["steps"]):
        assert [(step["tool"], step["outcome"]) for step in steps] == [(tool, "completed")]
        assert {step["call_id"] for step in steps} <= call_ids
    if kind != "agent_executor":  # of whose calls the model's own ids are not known
        assert call_ids == {"call-0"}


@pytest.mark.parametrize(("body", "ends"), [({}, "cancelled"), ({"timeout": 3.0}, "timeout")])
async def test_step_of_a_stopped_run_has_its_outcome(
    body: dict[str, Any], ends: str, tmp_path: Path
) -> None:
    """The step has the outcome; the events of a cancelled run end before that of its tool."""
    tools = fakes.ToolDesk(60.0)
    async with served({"a": calling("nap", tools)}, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk, include_steps=True, **body)
        await tools.started_calls()
        if not body:
            await desk.client.delete(f"/agent/async/{task_id}")
        task = await ended(desk, task_id)
        story = await events(desk, task_id)
    assert task["status"] == ends
    assert [(s["tool"], s["outcome"]) for s in task["error"]["steps"]] == [("nap", ends)]
    outcomes = [event.data["outcome"] for event in story if event.name == "tool_end"]
    assert outcomes == ([ends] if body else [])
