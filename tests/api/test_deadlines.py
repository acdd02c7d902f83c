"""The deadline is hard, whatever blocks the run, and the 504 names the cause."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.runs import runner
from app.runs.events import ModelCallFinished, WorkAbandoned
from app.runs.model import CallOutcome, Outcome
from tests import fakes, faults
from tests.service import Served, served, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
kinds = pytest.mark.parametrize("kind", fakes.KINDS)

# Every agent is asked at once, each with a little more time than the one before: so long that a
# machine that stands still for a moment does not keep a run from what is to hold it.
TIMEOUT_S, APART_S = 6.0, 0.1
GRACE_S = 4.0
# The promise is 0.25 s; a shared machine may take longer to wake us.
LATE_S = 0.9
# Much longer than a deadline, so that waiting for the work shows.
HELD_S = 60.0

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


@pytest.fixture(scope="module")
def grace() -> Iterator[None]:
    """What can stop has the time to; the real grace is seen to in the tests of the runner."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runner, "GRACE_S", GRACE_S)
        yield


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk(tools: fakes.ToolDesk, grace: None) -> AsyncIterator[Served]:
    async with served(_agents(tools), tool_threads=64) as service:
        yield service
        service.books_balance()
        tools.release()


@dataclass(frozen=True)
class Late:
    """How a question was answered, and how long after its deadline."""

    response: httpx.Response
    late_s: float


async def _ask(desk: Served, agent: str, timeout_s: float, *, include_steps: bool) -> Late:
    began = time.monotonic()
    body = {"timeout": timeout_s, "include_steps": include_steps}
    response = await desk.ask(faults.QUESTION, agent=agent, **body)
    return Late(response, time.monotonic() - began - timeout_s)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def answers(desk: Served) -> dict[str, Late]:
    """What each agent was answered; `brief-KIND` is that of a nap without its steps."""
    agents = {f"brief-{kind}": f"nap-{kind}" for kind in fakes.KINDS}
    agents |= {name: name for name in desk.service.agents}
    asking = [
        _ask(desk, agent, TIMEOUT_S + number * APART_S, include_steps=name == agent)
        for number, (name, agent) in enumerate(agents.items())
    ]
    return dict(zip(agents, await asyncio.gather(*asking), strict=True))


def timed_out(desk: Served, answers: dict[str, Late], agent: str) -> Any:
    """The problem of a run that ended at its deadline."""
    response = answers[agent].response
    assert response.status_code == 504, response.text
    assert 0 <= answers[agent].late_s < HELD_S / 4
    problem = response.json()
    assert (problem["code"], problem["outcome"]) == ("timeout", "timeout")
    assert (problem["status"], problem["retryable"]) == (504, True)
    assert response.headers["x-run-id"] == problem["run_id"]
    assert response.headers["content-type"] == "application/problem+json"
    spent = sum(problem["timings"].values())
    assert TIMEOUT_S <= spent < HELD_S / 2
    end = desk.end_of(problem["run_id"])
    assert (end.outcome, end.code, str(end.phase)) == (Outcome.TIMEOUT, "timeout", problem["phase"])
    assert end.duration_s == pytest.approx(spent, abs=0.001)
    return problem


async def test_answers_leave_at_their_deadlines(answers: dict[str, Late]) -> None:
    """Answers leave within a moment of their deadlines; a busy machine may delay some."""
    late = sorted(answer.late_s for answer in answers.values())
    assert late[0] >= 0
    assert late[len(late) // 4] < LATE_S


@kinds
@pytest.mark.parametrize("holder", HOLDERS)
async def test_tool_cannot_delay_the_answer(
    desk: Served, answers: dict[str, Late], kind: str, holder: str
) -> None:
    """A tool that sleeps, ignores its cancellation or blocks cannot delay the answer."""
    problem = timed_out(desk, answers, f"{holder}-{kind}")
    assert problem["phase"] == f"tool:{holder}"
    assert (problem["iterations"], problem["tool_calls"]) == (2, 2)
    first, second = problem["steps"]
    assert (first["tool"], first["arguments"]) == ("look", {"order": "7"})
    assert (first["result"], first["outcome"]) == ("order 7 shipped", "completed")
    assert problem["timings"]["tools_s"] > second["duration_s"] - 0.01 > 0


@kinds
async def test_open_call_is_a_step_with_its_outcome(
    desk: Served, answers: dict[str, Late], kind: str
) -> None:
    """The call that was open at the deadline is a step like any other, with that outcome."""
    steps = timed_out(desk, answers, f"nap-{kind}")["steps"]
    assert [step["outcome"] for step in steps] == ["completed", "timeout"]
    assert all(step.keys() == steps[0].keys() for step in steps)
    assert steps[1]["result"] is None


@kinds
@pytest.mark.parametrize("model", MODELS)
async def test_model_cannot_delay_the_answer(
    desk: Served, answers: dict[str, Late], kind: str, model: str
) -> None:
    """A slow model, whether it can be cancelled or not, cannot delay the answer."""
    problem = timed_out(desk, answers, f"{model}-{kind}")
    assert problem["phase"] == "llm"
    assert (problem["iterations"], problem["tool_calls"]) == (0, 0)
    timings = problem["timings"]
    assert timings["llm_s"] > 0
    assert timings["tools_s"] == 0


async def test_sync_node_cannot_delay_the_answer(desk: Served, answers: dict[str, Late]) -> None:
    """A sync node of a graph cannot delay the answer."""
    assert timed_out(desk, answers, "node")["phase"] == "other"


@kinds
async def test_parallel_tools_count_once_in_the_timings(
    desk: Served, answers: dict[str, Late], kind: str
) -> None:
    """Parallel calls that hang are counted once in the timings and each in the count."""
    problem = timed_out(desk, answers, f"blocks-{kind}")
    assert (problem["iterations"], problem["tool_calls"]) == (1, 3)
    longest_s = max(step["duration_s"] for step in problem["steps"])
    assert problem["timings"]["tools_s"] == pytest.approx(longest_s, abs=0.01)
    assert [step["outcome"] for step in problem["steps"]] == ["timeout"] * 3


@kinds
async def test_timeout_has_no_steps_unless_asked_for(
    desk: Served, answers: dict[str, Late], kind: str
) -> None:
    """Without include_steps a 504 has no content of the run."""
    assert timed_out(desk, answers, f"brief-{kind}").get("steps") is None
    text = answers[f"brief-{kind}"].response.text
    assert "shipped" not in text
    assert faults.QUESTION not in text


@kinds
async def test_async_tool_is_cancelled_at_the_deadline(
    desk: Served, answers: dict[str, Late], tools: fakes.ToolDesk, kind: str
) -> None:
    """An async tool is cancelled at the deadline and leaves nothing behind."""
    for name in ("nap", "brief"):
        run_id = timed_out(desk, answers, f"{name}-{kind}")["run_id"]
        assert not [f for f in desk.facts_of(WorkAbandoned) if f.run_id == run_id]
    assert tools.cancelled.count("nap") == 2 * len(fakes.KINDS)


@kinds
@pytest.mark.parametrize(
    ("holder", "threads", "tasks"),
    [("stubborn", 0, 1), ("block", 1, 0), ("sync-model", 1, 0), ("blocks", 3, 0)],
)
async def test_work_that_will_not_stop_is_counted(
    desk: Served, answers: dict[str, Late], kind: str, holder: str, threads: int, tasks: int
) -> None:
    """Work that will not stop is counted exactly."""
    run_id = timed_out(desk, answers, f"{holder}-{kind}")["run_id"]
    left = [f for f in desk.facts_of(WorkAbandoned) if f.run_id == run_id]
    assert [(fact.threads, fact.tasks) for fact in left] == [(threads, tasks)]


@kinds
@pytest.mark.parametrize("model", MODELS)
async def test_open_model_call_ends_as_timeout(
    desk: Served, answers: dict[str, Late], kind: str, model: str
) -> None:
    """The model call that was open at the deadline ends as `timeout` in the facts too."""
    run_id = timed_out(desk, answers, f"{model}-{kind}")["run_id"]
    calls = [f for f in desk.facts_of(ModelCallFinished) if f.run_id == run_id]
    assert [call.outcome for call in calls] == [CallOutcome.TIMEOUT]


async def test_shortest_timeout_is_a_504(desk: Served) -> None:
    """The shortest timeout there is gives a 504 like any other."""
    responses = await asyncio.gather(
        *(desk.ask(agent=f"nap-{kind}", timeout=1e-9) for kind in fakes.KINDS)
    )
    for response in responses:
        assert response.status_code == 504
        assert desk.end_of(response.headers["x-run-id"]).tool_calls == 0


async def test_hanging_run_delays_no_other(desk: Served) -> None:
    """While a run hangs, others are served at once."""
    hanging = asyncio.ensure_future(desk.ask(agent="block-create_agent"))
    runs = desk.service.runner.in_flight
    await until(lambda: [run for run in runs.values() if str(run.phase()) == "tool:block"])
    assert (await desk.client.get("/health")).status_code == 200
    assert not hanging.done()
    (run_id,) = runs
    await desk.client.delete(f"/runs/{run_id}")
    assert (await hanging).status_code == 503


@kinds
async def test_blocked_event_loop_answers_once_it_is_free(kind: str) -> None:
    """If a tool blocks the event loop, its run is answered once the loop is free."""
    hog = fakes.ToolDesk(seconds=0.8)
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("hog"))
    async with served({"hog": fakes.build(kind, model, hog.tools())}) as desk:
        began = time.monotonic()
        response = await desk.ask(timeout=0.6)
        assert response.status_code == 504, response.text
        assert time.monotonic() - began < 20
        desk.books_balance()
