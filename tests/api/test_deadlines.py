"""The deadline is hard, whatever holds the run, and the 504 says what did."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.runs.events import ModelCallFinished, WorkAbandoned
from app.runs.model import CallOutcome, Outcome
from tests import fakes, faults
from tests.service import Served, served, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
kinds = pytest.mark.parametrize("kind", fakes.KINDS)

TIMEOUT_S = 0.6
# The promise is 0.25 s; a shared machine may take longer to wake us.
LATE_S = 0.9
# Much longer than the deadline, so that waiting for the work shows.
HELD_S = 2.0

HOLDERS = ("nap", "stubborn", "block")
MODELS = ("model", "sync-model")


def _look_then(tool_name: str) -> fakes.Script:
    """Look an order up in the first turn, then ask for the tool that holds the run."""

    def script(messages: Any) -> Any:
        done = len(fakes.results_since_question(messages))
        return fakes.asks("look", {"order": "7"}) if not done else fakes.asks(tool_name, {})

    return script


def _agents(tools: fakes.ToolDesk) -> dict[str, Any]:
    agents: dict[str, Any] = {"node": faults.graph_with_sync_node(HELD_S)}
    look = fakes.calls_then_answers("look")
    both = fakes.calls_then_answers("block", parallel=3)
    for kind in fakes.KINDS:
        for holder in HOLDERS:
            model = fakes.ScriptedModel(script=_look_then(holder))
            agents[f"{holder}-{kind}"] = fakes.build(kind, model, tools.tools())
        slow = {
            "model": fakes.ScriptedModel(script=look, delay_s=HELD_S),
            "sync-model": faults.SyncModel(script=look, delay_s=HELD_S),
            "blocks": fakes.ScriptedModel(script=both),
        }
        for name, model_ in slow.items():
            agents[f"{name}-{kind}"] = fakes.build(kind, model_, tools.tools())
    return agents


@pytest.fixture(scope="module")
def tools() -> fakes.ToolDesk:
    return fakes.ToolDesk(seconds=HELD_S)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk(tools: fakes.ToolDesk) -> AsyncIterator[Served]:
    async with served(_agents(tools), tool_threads=64) as service:
        yield service
        service.books_balance()


async def timed_out(desk: Served, agent: str, **body: Any) -> httpx.Response:
    """Ask and get a 504 within the bound."""
    began = time.monotonic()
    response = await desk.ask(faults.QUESTION, agent=agent, timeout=TIMEOUT_S, **body)
    took_s = time.monotonic() - began
    assert response.status_code == 504, response.text
    assert TIMEOUT_S <= took_s < TIMEOUT_S + LATE_S
    problem = response.json()
    assert (problem["code"], problem["outcome"]) == ("timeout", "timeout")
    assert (problem["status"], problem["retryable"]) == (504, True)
    assert response.headers["x-run-id"] == problem["run_id"]
    assert response.headers["content-type"] == "application/problem+json"
    spent = sum(problem["timings"].values())
    assert TIMEOUT_S <= spent < TIMEOUT_S + LATE_S
    end = desk.end_of(problem["run_id"])
    assert (end.outcome, end.code, str(end.phase)) == (Outcome.TIMEOUT, "timeout", problem["phase"])
    assert end.duration_s == pytest.approx(spent, abs=0.001)
    return response


@kinds
@pytest.mark.parametrize("holder", HOLDERS)
async def test_a_tool_holds_the_run(desk: Served, kind: str, holder: str) -> None:
    """A tool that sleeps, that will not be cancelled or that blocks cannot hold the answer."""
    response = await timed_out(desk, f"{holder}-{kind}", include_steps=True)
    problem = response.json()
    assert problem["phase"] == f"tool:{holder}"
    assert (problem["iterations"], problem["tool_calls"]) == (2, 2)
    assert TIMEOUT_S / 3 < problem["timings"]["tools_s"] < TIMEOUT_S + LATE_S
    first = problem["steps"][0]
    assert (first["tool"], first["arguments"]) == ("look", {"order": "7"})
    assert (first["result"], first["outcome"]) == ("order 7 shipped", "completed")


@kinds
async def test_the_call_that_died(desk: Served, kind: str) -> None:
    """The call that was open at the deadline is a step like any other, with that outcome."""
    response = await timed_out(desk, f"nap-{kind}", include_steps=True)
    steps = response.json()["steps"]
    assert [step["outcome"] for step in steps] == ["completed", "timeout"]
    assert all(step.keys() == steps[0].keys() for step in steps)
    assert steps[1]["result"] is None


@kinds
@pytest.mark.parametrize("model", MODELS)
async def test_a_model_holds_the_run(desk: Served, kind: str, model: str) -> None:
    """A slow model, whether it can be cancelled or not, cannot hold the answer."""
    problem = (await timed_out(desk, f"{model}-{kind}")).json()
    assert problem["phase"] == "llm"
    assert (problem["iterations"], problem["tool_calls"]) == (0, 0)
    assert TIMEOUT_S / 3 < problem["timings"]["llm_s"] < TIMEOUT_S + LATE_S


async def test_a_node_holds_the_run(desk: Served) -> None:
    """A sync node of a graph cannot hold the answer."""
    assert (await timed_out(desk, "node")).json()["phase"] == "other"


@kinds
async def test_parallel_tools_hold_the_run(desk: Served, kind: str) -> None:
    """Parallel calls that hang are counted once in the timings and each in the count."""
    problem = (await timed_out(desk, f"blocks-{kind}", include_steps=True)).json()
    assert (problem["iterations"], problem["tool_calls"]) == (1, 3)
    assert problem["timings"]["tools_s"] < TIMEOUT_S + LATE_S
    assert [step["outcome"] for step in problem["steps"]] == ["timeout"] * 3


@kinds
async def test_no_steps_unless_asked(desk: Served, kind: str) -> None:
    """Without include_steps nothing that was said stands in a 504."""
    response = await timed_out(desk, f"nap-{kind}")
    assert response.json().get("steps") is None
    assert "shipped" not in response.text
    assert faults.QUESTION not in response.text


@kinds
async def test_what_can_be_cancelled_is(desk: Served, tools: fakes.ToolDesk, kind: str) -> None:
    """An async tool is cancelled at the deadline, and nothing of it is left."""
    before = tools.cancelled.count("nap")
    run_id = (await timed_out(desk, f"nap-{kind}")).json()["run_id"]
    assert tools.cancelled.count("nap") == before + 1
    assert not [f for f in desk.facts_of(WorkAbandoned) if f.run_id == run_id]


@kinds
@pytest.mark.parametrize(
    ("holder", "threads", "tasks"),
    [("stubborn", 0, 1), ("block", 1, 0), ("sync-model", 1, 0), ("blocks", 3, 0)],
)
async def test_what_is_left(desk: Served, kind: str, holder: str, threads: int, tasks: int) -> None:
    """Work that will not stop is counted exactly."""
    run_id = (await timed_out(desk, f"{holder}-{kind}")).json()["run_id"]
    left = [f for f in desk.facts_of(WorkAbandoned) if f.run_id == run_id]
    assert [(fact.threads, fact.tasks) for fact in left] == [(threads, tasks)]


@kinds
@pytest.mark.parametrize("model", MODELS)
async def test_open_calls_end_as_timeout(desk: Served, kind: str, model: str) -> None:
    """The model call that was open at the deadline ends as `timeout` in the facts too."""
    run_id = (await timed_out(desk, f"{model}-{kind}")).json()["run_id"]
    calls = [f for f in desk.facts_of(ModelCallFinished) if f.run_id == run_id]
    assert [call.outcome for call in calls] == [CallOutcome.TIMEOUT]


async def test_a_deadline_that_has_passed(desk: Served) -> None:
    """The shortest timeout there is gives a 504 like any other."""
    responses = await asyncio.gather(
        *(desk.ask(agent=f"nap-{kind}", timeout=1e-9) for kind in fakes.KINDS)
    )
    for response in responses:
        assert response.status_code == 504
        assert desk.end_of(response.headers["x-run-id"]).tool_calls == 0


async def test_others_do_not_notice(desk: Served) -> None:
    """While a run hangs, others are served at once."""
    hanging = asyncio.ensure_future(desk.ask(agent="block-create_agent", timeout=TIMEOUT_S))
    await until(lambda: desk.service.runner.admission.running)
    began = time.monotonic()
    assert (await desk.client.get("/health")).status_code == 200
    assert time.monotonic() - began < TIMEOUT_S
    assert (await hanging).status_code == 504


@kinds
async def test_a_tool_that_holds_the_loop(kind: str) -> None:
    """When a tool holds the event loop itself, its run is answered once the loop is back."""
    hog = fakes.ToolDesk(seconds=0.8)
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("hog"))
    async with served({"hog": fakes.build(kind, model, hog.tools())}) as desk:
        began = time.monotonic()
        response = await desk.ask(timeout=TIMEOUT_S)
        assert response.status_code == 504, response.text
        assert time.monotonic() - began < 0.8 + LATE_S
        desk.books_balance()
