"""Runs in flight and ended: `GET /runs`, one run, and the bound of the history."""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from tests import fakes
from tests.service import Served, served, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
kinds = pytest.mark.parametrize("kind", fakes.KINDS)

ROW = {"run_id", "agent", "mode", "state", "phase", "age_s", "iterations", "tool_calls",
       "timeout_s"}  # fmt: skip
KEPT = 5


def _look_then_nap(messages: Any) -> Any:
    done = len(fakes.results_since_question(messages))
    return fakes.asks("look", {"order": "7"}) if not done else fakes.asks("nap", {})


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk() -> AsyncIterator[Served]:
    tools = fakes.ToolDesk(seconds=60.0).tools()
    agents: dict[str, Any] = {}
    for kind in fakes.KINDS:
        quick = fakes.ScriptedModel(script=fakes.calls_then_answers("look", {"order": "7"}))
        slow = fakes.ScriptedModel(script=_look_then_nap)
        thinks = fakes.ScriptedModel(script=_look_then_nap, delay_s=60.0)
        agents[f"look-{kind}"] = fakes.build(kind, quick, tools)
        agents[f"nap-{kind}"] = fakes.build(kind, slow, tools)
        agents[f"think-{kind}"] = fakes.build(kind, thinks, tools)
    async with served(agents, keep_finished_runs=KEPT) as service:
        yield service
        service.books_balance()


async def in_flight(desk: Served, agent: str, **body: Any) -> tuple[str, asyncio.Future[Any]]:
    """Start a run and wait for its phase; returns its id and its caller."""
    asking = asyncio.ensure_future(desk.ask(agent=agent, **body))
    phase = "llm" if agent.startswith("think") else "tool:nap"
    runs = desk.service.runner.in_flight

    def held() -> list[str]:
        return [r.id for r in runs.values() if r.agent.name == agent and str(r.phase()) == phase]

    await until(held)
    return held()[0], asking


async def stop(desk: Served, run_id: str, asking: asyncio.Future[Any]) -> None:
    await desk.client.delete(f"/runs/{run_id}")
    await asking


@kinds
async def test_run_in_flight_shows_its_phase(desk: Served, kind: str) -> None:
    """A run in flight shows its phase, since when, and what it has done."""
    began, began_at = time.monotonic(), datetime.now(UTC)
    run_id, asking = await in_flight(desk, f"nap-{kind}", timeout=90, metadata={"from": "desk"})
    run = (await desk.client.get(f"/runs/{run_id}")).json()
    assert run.keys() >= ROW
    assert (run["run_id"], run["agent"], run["mode"]) == (run_id, f"nap-{kind}", "sync")
    assert (run["state"], run["phase"]) == ("running", "tool:nap")
    assert (run["iterations"], run["tool_calls"], run["timeout_s"]) == (2, 2, 90)
    assert (run["outcome"], run["code"]) == (None, None)
    assert run["metadata"] == {"from": "desk"}
    assert 0 < run["age_s"] < time.monotonic() - began + 0.01
    spent = sum(run["timings"].values())
    assert spent == pytest.approx(run["age_s"], abs=0.1)
    moment = timedelta(milliseconds=1)
    assert began_at - moment < datetime.fromisoformat(run["created_at"]) < datetime.now(UTC)
    await stop(desk, run_id, asking)


async def test_run_that_waits_for_its_model_is_in_llm(desk: Served) -> None:
    """A run whose model has not answered is in the phase `llm`."""
    run_id, asking = await in_flight(desk, "think-create_agent")
    assert (await desk.client.get(f"/runs/{run_id}")).json()["phase"] == "llm"
    await stop(desk, run_id, asking)


@pytest.mark.parametrize("asked", [False, True])
async def test_steps_of_a_run_in_flight(desk: Served, asked: bool) -> None:
    """Finished steps are listed; their content only if the caller asked for it."""
    run_id, asking = await in_flight(desk, "nap-create_agent", include_steps=asked)
    response = await desk.client.get(f"/runs/{run_id}")
    (step,) = response.json()["steps"]
    assert (step["tool"], step["outcome"], step["iteration"]) == ("look", "completed", 1)
    expected = ({"order": "7"}, "order 7 shipped") if asked else (None, None)
    assert (step["arguments"], step["result"]) == expected
    await stop(desk, run_id, asking)


async def test_lists_have_no_question_and_no_answer(desk: Served) -> None:
    """Lists contain neither questions nor answers."""
    run = (await desk.ask("secret-question", agent="look-create_agent")).json()
    for path in ("/runs", f"/runs/{run['run_id']}"):
        text = (await desk.client.get(path)).text
        assert "secret-question" not in text
        assert "shipped" not in text


async def test_finished_run_shows_its_outcome(desk: Served) -> None:
    """An ended run shows its outcome and the numbers of its answer."""
    run = (await desk.ask(agent="look-create_agent")).json()
    record = (await desk.client.get(f"/runs/{run['run_id']}")).json()
    assert (record["state"], record["outcome"], record["code"]) == ("finished", "completed", None)
    for field in ("agent", "iterations", "tool_calls", "iteration_limit", "timings", "usage"):
        assert record[field] == run[field]


async def test_run_id_header_on_every_response_about_a_run(desk: Served) -> None:
    """Every response about a run names it in a header."""
    run_id = (await desk.ask(agent="look-create_agent")).json()["run_id"]
    response = await desk.client.get(f"/runs/{run_id}")
    assert response.headers.get("x-run-id") == run_id


async def test_times_are_rfc_3339(desk: Served) -> None:
    """A moment is RFC 3339 in UTC."""
    run_id = (await desk.ask(agent="look-create_agent")).json()["run_id"]
    created = (await desk.client.get(f"/runs/{run_id}")).json()["created_at"]
    assert datetime.fromisoformat(created).utcoffset() == timedelta()


async def test_list_is_newest_first(desk: Served) -> None:
    """GET /runs lists the newest first, by state if asked."""
    old = (await desk.ask(agent="look-create_agent")).json()["run_id"]
    run_id, asking = await in_flight(desk, "nap-create_agent")
    listed = (await desk.client.get("/runs")).json()
    assert [run["run_id"] for run in listed["runs"]][:2] == [run_id, old]
    assert all(run.keys() >= ROW for run in listed["runs"])
    by_state = {
        state: [
            run["run_id"] for run in (await desk.client.get(f"/runs?state={state}")).json()["runs"]
        ]
        for state in ("running", "queued", "finished")
    }
    assert (by_state["running"], by_state["queued"]) == ([run_id], [])
    assert by_state["finished"][0] == old
    assert run_id not in by_state["finished"]
    limited = (await desk.client.get("/runs?limit=1")).json()["runs"]
    assert [run["run_id"] for run in limited] == [run_id]
    await stop(desk, run_id, asking)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("run_id", ["none", "00000000-0000-0000-0000-000000000000", "%00", "é"])
async def test_unknown_run_is_404(desk: Served, method: str, run_id: str) -> None:
    """An unknown run is 404."""
    response = await desk.client.request(method, f"/runs/{run_id}")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert response.headers["content-type"] == "application/problem+json"


async def test_history_keeps_the_last_runs_only(desk: Served) -> None:
    """The history has only the last few ended runs."""
    ids = [(await desk.ask(agent="look-create_agent")).json()["run_id"] for _ in range(KEPT + 3)]
    finished = (await desk.client.get("/runs?state=finished")).json()["runs"]
    assert [run["run_id"] for run in finished] == ids[: -KEPT - 1 : -1]
    assert (await desk.client.get(f"/runs/{ids[0]}")).status_code == 404
    assert (await desk.client.get(f"/runs/{ids[-1]}")).status_code == 200


async def test_history_entries_have_a_constant_size() -> None:
    """The record of an ended run does not grow with its question or answer."""
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("look", turns=0))
    async with served({"a": fakes.build("create_agent", model, [])}) as desk:
        question = "x" * 100_000
        await desk.ask(question)
        tracemalloc.start()
        try:
            for number in range(50):
                assert (await desk.ask(f"{number}{question}"[:100_000])).status_code == 200
            model.asked.clear()
            desk.facts.clear()
            gc.collect()
            grown, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert grown < 50 * 20_000
