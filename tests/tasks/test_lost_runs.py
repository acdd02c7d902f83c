"""A run that another process took over, and a run whose result could not be stored."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult

from app.runs.events import RunFinished, RunHandedOver, RunStarted
from app.tasks.transitions import Claim
from app.tasks.worker import Worker
from tests import fakes
from tests.service import served, until
from tests.tasks.background import calling, ended, submit, url_in, view
from tests.waiting import came_true


def written(folder: Path) -> str:
    """What is in the logs of all runs."""
    with sqlite3.connect(folder / "store.sqlite") as store:
        return str(store.execute("select value from streams").fetchall())


async def test_process_stops_a_run_it_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process stops a run it no longer owns and emits no end; an orphaned run is taken over."""
    monkeypatch.setattr("app.tasks.recovery.ORPHAN_S", 1.0)
    tools, thinking, may_answer = fakes.ToolDesk(), asyncio.Event(), asyncio.Event()

    class Thoughtful(fakes.ScriptedModel):
        async def _agenerate(
            self, messages: list[BaseMessage], *others: Any, **named: Any
        ) -> ChatResult:
            if fakes.results_since_question(messages):
                thinking.set()
                await may_answer.wait()
            return await super()._agenerate(messages, *others, **named)

    model = Thoughtful(script=fakes.calls_then_answers("nap", turns=2))
    agents = {"a": fakes.build("create_agent", model, tools.tools())}
    async with served(agents, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk)
        await came_true(thinking.is_set, "the model was asked")
        await until(lambda: "tool_end" in written(tmp_path), 20)
        with sqlite3.connect(tmp_path / "store.sqlite") as store:
            store.execute("update workflow_status set owner_xid = 'of another claim'")
        may_answer.set()
        await desk.emitted(RunHandedOver)
        assert tools.started == ["nap"]
        assert desk.facts_of(RunFinished) == []
        samples = (await desk.client.get("/metrics")).text
        assert 'agent_task_attempts_total{agent="a",outcome="handed_over"} 1.0' in samples
        task = await ended(desk, task_id)
        assert (task["status"], task["attempts"]) == ("completed", 2)
        assert task["result"]["iterations"] == 2


async def test_result_that_cannot_be_stored_is_retried(tmp_path: Path) -> None:
    """The attempt stores its result once the store has room."""
    tools = fakes.ToolDesk()
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("look"))
    agents = {"a": fakes.build("create_agent", model, tools.tools())}
    async with served(agents, store_url=url_in(tmp_path)) as desk:
        with sqlite3.connect(tmp_path / "store.sqlite") as store:
            store.execute(
                "create trigger full before update of status on workflow_status"
                " when new.status in ('SUCCESS', 'ERROR')"
                " begin select abs(-9223372036854775807 - 1); end"  # no constraint, which is final
            )
        task_id = await submit(desk)
        await desk.emitted(RunFinished)
        assert (await view(desk, task_id, 1.0))["status"] in ("running", "pending")
        with sqlite3.connect(tmp_path / "store.sqlite") as store:
            store.execute("drop trigger full")
        task = await ended(desk, task_id)
        assert (task["status"], task["attempts"]) == ("completed", 1)
        assert tools.started == ["look"]


@pytest.mark.parametrize("hears", [True, False])
async def test_loser_emits_no_end_of_a_run_cancelled_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hears: bool
) -> None:
    """A process that lost a run emits no end of it and leaves the reported end alone."""
    if not hears:  # so that it learns of it before a tool begins
        monkeypatch.setattr("app.tasks.heartbeat.Heartbeat._stop_lost", lambda _: None)
    tools = fakes.ToolDesk()
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("nap", turns=2), delay_s=1.0)
    agents = {"a": fakes.build("create_agent", model, tools.tools())}
    async with served(agents, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk)
        await tools.finished_calls()
        await asyncio.sleep(0.5)  # the model is asked again, and the events before are stored
        with sqlite3.connect(tmp_path / "store.sqlite") as store:
            store.execute(
                "update workflow_status set status = 'CANCELLED', executor_id = 'other',"
                " owner_xid = null, attributes = json_patch(attributes,"
                """ '{"stuck": false, "finished_at": 1.0}')"""
            )
        before = await view(desk, task_id)
        assert before["status"] == "cancelled"
        await desk.emitted(RunHandedOver)
        await asyncio.sleep(1)  # in which it would emit an end
        assert desk.facts_of(RunFinished) == []
        assert await view(desk, task_id) == before


async def test_cancel_through_the_process_that_lost_it(tmp_path: Path) -> None:
    """The process that lost a run stops it; the end is that of the new owner."""
    tools = fakes.ToolDesk(60)
    async with served({"a": calling("nap", tools)}, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk)
        await tools.started_calls()
        with sqlite3.connect(tmp_path / "store.sqlite") as store:
            store.execute("update workflow_status set executor_id = 'gone', owner_xid = 'gone'")
        response = await desk.client.delete(f"/agent/async/{task_id}")
        assert response.json()["result"] == "cancelled"
        await desk.emitted(RunFinished)
        await asyncio.sleep(1)  # in which another end would come
        assert [end.outcome for end in desk.facts_of(RunFinished)] == ["cancelled"]
        assert len(desk.facts_of(RunHandedOver)) == 1


async def test_late_starter_leaves_a_run_that_was_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stood still between claiming a run and starting it leaves the run alone."""
    attempt, held = Worker._attempt, list[str]()

    def after_another(worker: Worker, claim: Claim, stored: Any) -> Any:
        if not held:
            held.append(claim.task_id)
            with sqlite3.connect(tmp_path / "store.sqlite", timeout=20) as store:
                store.execute("update workflow_status set executor_id = 'o', owner_xid = 'o'")
        return attempt(worker, claim, stored)

    monkeypatch.setattr(Worker, "_attempt", after_another)
    monkeypatch.setattr("app.tasks.recovery.Recovery._take_over_of_dead", lambda _: None)
    tools = fakes.ToolDesk()
    async with served({"a": calling("look", tools)}, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk)
        await until(lambda: held, 20)
        await asyncio.sleep(1.5)  # in which it would begin
        task = await view(desk, task_id)
        assert (task["attempts"], tools.started, desk.facts_of(RunStarted)) == (0, [], [])
