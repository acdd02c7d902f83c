"""Asking an agent and getting an answer: the fields of a finished run."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
import pytest_asyncio
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from app.agents.demo import agent as demo
from app.runs.events import ModelCallFinished
from app.runs.model import Outcome
from tests import fakes, faults
from tests.service import Served, served, until
from watchkeeper import remaining

pytestmark = pytest.mark.asyncio(loop_scope="module")
kinds = pytest.mark.parametrize("kind", fakes.KINDS)

FIELDS = {
    "run_id", "agent", "answer", "output", "outcome", "iterations", "iteration_limit",
    "tool_calls", "usage", "duration_s", "timings", "trace_id", "demo", "steps",
}  # fmt: skip
UUID = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}")
HALVES = fakes.calls_then_answers("look", {"order": "\ud83d"})


class Parcel(BaseModel):
    """Where an order is."""

    order: str
    arrives: datetime


@tool
async def recite() -> str:
    """Give a text longer than a step may hold."""
    return "数" * 5_000


def _structured() -> Any:
    def script(messages: Any) -> AIMessage:
        if not fakes.results_since_question(messages):
            return fakes.asks("look", {"order": "7"})
        return fakes.asks("Parcel", {"order": "7", "arrives": "2026-03-01T00:00:00Z"}, number=1)

    model = fakes.ScriptedModel(script=script)
    return create_agent(model, fakes.ToolDesk().tools(), response_format=ToolStrategy(Parcel))


def _in_blocks() -> Any:
    blocks: list[Any] = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    return create_agent(fakes.ScriptedModel(script=lambda _: AIMessage(blocks)), [])


def _agents() -> dict[str, Any]:
    agents: dict[str, Any] = {}
    for kind in fakes.KINDS:
        tools = fakes.ToolDesk(seconds=0.2).tools()
        scripts = {
            "one": fakes.calls_then_answers("look", {"order": "7"}),
            "many": fakes.calls_then_answers("look", {"order": "7"}, turns=2, parallel=3),
            "naps": fakes.calls_then_answers("nap", parallel=3),
            "recite": fakes.calls_then_answers("recite"),
            "talk": fakes.calls_then_answers("look", turns=0),
        }
        for name, script in scripts.items():
            model = fakes.ScriptedModel(script=script, delay_s=0.1 if name == "naps" else 0.0)
            agents[f"{name}-{kind}"] = fakes.build(kind, model, [*tools, recite])
    return agents


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk() -> AsyncIterator[Served]:
    extra = {"structured": _structured(), "blocks": _in_blocks(), "demo": demo.build()}
    extra["halves"] = create_agent(faults.model(script=HALVES), fakes.ToolDesk().tools())
    async with served({**_agents(), **extra}) as service:
        yield service
        service.books_balance()


@kinds
async def test_finished_run_has_every_field(desk: Served, kind: str) -> None:
    """A finished run has every field of the contract, in the contract's types."""
    response = await desk.ask("where is 7?", agent=f"one-{kind}")
    run = response.json()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert run.keys() >= FIELDS
    assert UUID.fullmatch(run["run_id"])
    assert run["agent"] == f"one-{kind}"
    assert run["answer"] == "done: where is 7?: order 7 shipped"
    assert (run["output"], run["steps"], run["trace_id"]) == (None, None, None)
    assert (run["outcome"], run["demo"]) == ("completed", False)
    assert run["iteration_limit"] == 10
    assert run["timings"].keys() == {"queue_s", "llm_s", "tools_s", "other_s"}


@kinds
@pytest.mark.parametrize(
    ("agent", "iterations", "tool_calls"), [("talk", 0, 0), ("one", 1, 1), ("many", 2, 6)]
)
async def test_parallel_calls_are_one_iteration(
    desk: Served, kind: str, agent: str, iterations: int, tool_calls: int
) -> None:
    """Parallel calls of one turn are one iteration."""
    run = (await desk.ask(agent=f"{agent}-{kind}")).json()
    assert (run["iterations"], run["tool_calls"]) == (iterations, tool_calls)
    end = desk.end_of(run["run_id"])
    assert (end.iterations, end.tool_calls, end.outcome) == (
        iterations,
        tool_calls,
        Outcome.COMPLETED,
    )


@kinds
async def test_usage_is_the_sum_over_model_calls(desk: Served, kind: str) -> None:
    """Usage is the sum over every model call of the run, while its price is unknown."""
    run = (await desk.ask(agent=f"many-{kind}")).json()
    assert run["usage"] == {"input_tokens": 30, "output_tokens": 15, "cost_usd": None}


@kinds
async def test_timings_add_up(desk: Served, kind: str) -> None:
    """Queue, llm, tools and other add up to the duration; parallel tools count once."""
    run = (await desk.ask(agent=f"naps-{kind}", include_steps=True)).json()
    timings = run["timings"]
    assert sum(timings.values()) == pytest.approx(run["duration_s"], abs=0.001)
    covered_s, until_s = 0.0, 0.0
    for step in sorted(run["steps"], key=lambda step: step["started_s"]):
        ended_s = step["started_s"] + step["duration_s"]
        covered_s += max(0.0, ended_s - max(until_s, step["started_s"]))
        until_s = max(until_s, ended_s)
    assert timings["tools_s"] == pytest.approx(covered_s, abs=0.01)
    assert timings["tools_s"] >= 0.2
    calls = [f for f in desk.facts_of(ModelCallFinished) if f.run_id == run["run_id"]]
    thought_s = sum(call.at - call.started_at for call in calls)
    assert timings["llm_s"] == pytest.approx(thought_s, abs=0.01)
    assert timings["llm_s"] >= 0.2
    assert all(seconds >= 0 for seconds in timings.values())


async def test_server_timing_equals_the_body(desk: Served) -> None:
    """Server-Timing has the times of the body, in milliseconds."""
    response = await desk.ask(agent="naps-create_agent")
    parts = response.headers["server-timing"].split(", ")
    durations = {name: float(ms) for name, ms in (part.split(";dur=") for part in parts)}
    run = response.json()
    assert durations.keys() == {"queue", "llm", "tools", "total"}
    assert durations["total"] == pytest.approx(run["duration_s"] * 1000, abs=0.2)
    assert durations["llm"] == pytest.approx(run["timings"]["llm_s"] * 1000, abs=0.2)
    assert durations["tools"] == pytest.approx(run["timings"]["tools_s"] * 1000, abs=0.2)


async def test_run_id_header(desk: Served) -> None:
    """A header has the run's id too."""
    response = await desk.ask()
    assert response.headers["x-run-id"] == response.json()["run_id"]


@kinds
async def test_steps_are_returned_if_asked_for(desk: Served, kind: str) -> None:
    """Steps are returned if asked for, one for each tool call."""
    response = await desk.ask(agent=f"many-{kind}", include_steps=True)
    steps = response.json()["steps"]
    assert [step["iteration"] for step in steps] == [1, 1, 1, 2, 2, 2]
    for step in steps:
        assert step.keys() == {
            "iteration", "tool", "call_id", "arguments", "result", "outcome",
            "started_s", "duration_s",
        }  # fmt: skip
        assert (step["tool"], step["outcome"]) == ("look", "completed")
        assert (step["arguments"], step["result"]) == ({"order": "7"}, "order 7 shipped")
        assert 0 <= step["started_s"] <= response.json()["duration_s"]
    assert len({step["call_id"] for step in steps}) == 6


@kinds
async def test_step_result_is_cut_at_4_kb(desk: Served, kind: str) -> None:
    """A step's result is cut at 4 KB, never inside a character, while the answer is whole."""
    run = (await desk.ask(agent=f"recite-{kind}", include_steps=True)).json()
    result = run["steps"][0]["result"]
    assert 4_000 < len(result.encode()) <= 4_096
    assert "\ufffd" not in result
    assert run["answer"].endswith("数" * 5_000)


async def test_structured_output(desk: Served) -> None:
    """A structured response is the run's output, and the call for it is no iteration."""
    run = (await desk.ask(agent="structured")).json()
    assert run["output"] == {"order": "7", "arrives": "2026-03-01T00:00:00Z"}
    assert (run["iterations"], run["tool_calls"]) == (1, 1)


async def test_content_blocks(desk: Served) -> None:
    """An answer in content blocks is the text of the blocks."""
    assert (await desk.ask(agent="blocks")).json()["answer"] == "one two"


async def test_half_a_surrogate_pair_is_sent(desk: Served) -> None:
    """Text of a model or a tool is sent even if it is not valid Unicode."""
    response = await desk.ask(agent="halves", include_steps=True)
    assert response.status_code == 200, response.text
    (step,) = response.json()["steps"]
    assert step["arguments"]["order"] in ("?", "\ufffd")
    record = await desk.client.get(f"/runs/{response.json()['run_id']}")
    assert record.status_code == 200


async def test_demo_answer_is_marked(desk: Served) -> None:
    """An answer of the demo model is marked as such."""
    run = (await desk.ask("Where is order 10023?", agent="demo")).json()
    assert run["demo"] is True
    assert run["iterations"] >= 1
    assert "10023" in run["answer"]


async def test_first_agent_is_the_default(desk: Served) -> None:
    """POST /agent asks the agent that was named first."""
    assert (await desk.ask()).json()["agent"] == f"one-{fakes.KINDS[0]}"


@kinds
async def test_caller_may_lower_the_iteration_limit(desk: Served, kind: str) -> None:
    """A caller may lower the iteration limit."""
    run = (await desk.ask(agent=f"many-{kind}", max_iterations=1)).json()
    assert (run["outcome"], run["iterations"]) == ("iteration_limit", 1)
    assert (run["iteration_limit"], run["tool_calls"]) == (1, 3)


@pytest.mark.parametrize(
    "question",
    ["订单 10023 在哪里？", "Где заказ?", "أين طلبي؟", "🦊👩‍👩‍👧‍👦🇨🇳", "a\u0301 \u202e\t\u2028 end",
     "\U0010ffff\ufeff", "{input} {{x}} %s $y </s>", "x" * 100_000, "🦊" * 100_000],
    ids=lambda question: ascii(question[:8]),
)  # fmt: skip
@kinds
async def test_question_in_any_script_comes_back(desk: Served, kind: str, question: str) -> None:
    """A question in any writing reaches the agent and comes back as it was."""
    response = await desk.ask(question, agent=f"talk-{kind}")
    assert response.status_code == 200
    assert response.json()["answer"].strip() == f"done: {question}: ".strip()


@kinds
async def test_hundred_callers_get_their_own_answers(desk: Served, kind: str) -> None:
    """A hundred callers at once each get the answer to their own question."""
    requests = [desk.ask(f"q{number}", agent=f"one-{kind}", timeout=60) for number in range(100)]
    responses = await asyncio.gather(*requests)
    assert {response.status_code for response in responses} == {200}
    runs = [response.json() for response in responses]
    assert [run["answer"] for run in runs] == [
        f"done: q{number}: order 7 shipped" for number in range(100)
    ]
    assert len({run["run_id"] for run in runs}) == 100
    for run in runs:
        end = desk.end_of(run["run_id"])
        assert (end.iterations, end.tool_calls, end.usage.input_tokens) == (1, 1, 20)
    await until(lambda: desk.service.runner.admission.running == 0)


async def test_agents_are_listed(desk: Served) -> None:
    """GET /agents shows every agent, the default one first."""
    response = await desk.client.get("/agents")
    agents = response.json()["agents"]
    assert [agent["name"] for agent in agents] == list(desk.service.agents)
    assert [agent["default"] for agent in agents] == [True] + [False] * (len(agents) - 1)
    assert {agent["kind"] for agent in agents} == set(fakes.KINDS)
    assert {agent["name"] for agent in agents if agent["demo"]} == {"demo"}
    first = agents[0]
    assert first["tools"] == ["look", "nap", "stubborn", "block", "hog", "broken", "recite"]
    assert (first["iteration_limit"], first["early_stopping"]) == (10, "generate")
    assert (first["timeout_s"], first["max_timeout_s"]) == (30.0, 300.0)


async def test_tool_may_ask_for_the_remaining_time() -> None:
    """A tool may ask how many seconds its run has left."""
    seen: list[float] = []

    @tool
    async def look() -> str:
        """Look."""
        seen.append(remaining())
        return "looked"

    agents = {kind: fakes.build(kind, faults.model(), [look]) for kind in fakes.KINDS}
    async with served(agents) as service:
        for kind in agents:
            assert (await service.ask(agent=kind, timeout=90)).status_code == 200
    assert len(seen) == len(agents)
    assert all(30 < left < 90 for left in seen)
