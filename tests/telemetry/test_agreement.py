"""The answer, the metrics, the spans and the log line agree on every run."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.runs.model import Outcome
from tests import fakes, faults, wire
from tests.telemetry.holding import LONG_S, Holding
from tests.telemetry.watched import ERRORS, Watched, root_of, watched

pytestmark = pytest.mark.asyncio(loop_scope="module")
kinds = pytest.mark.parametrize("kind", fakes.KINDS)
LEVELS = {"iteration_limit": "warning", "timeout": "warning", "failed": "error"}
FAILING_AGENTS: dict[str, Callable[[], Any]] = {
    "create_agent": lambda: faults.agent_whose_middleware_raises(RuntimeError("x")),
    "langgraph": lambda: faults.graph_that_raises(RuntimeError("x")),
    "agent_executor": lambda: faults.executor_whose_parser_raises(RuntimeError("x")),
}
ASKING: dict[str, Callable[[], Any]] = {
    "create_agent": faults.agent_whose_tool_asks,
    "langgraph": lambda: faults.graph_that_asks(keeps_state=True),
}


def _agents(desk: Holding) -> dict[str, Any]:
    tools = desk.tools()
    agents: dict[str, Any] = {}
    for kind in fakes.KINDS:
        for name in ("look", "nap", "block", "stubborn", "broken"):
            script = fakes.calls_then_answers(name, parallel=2)
            agents[f"{name}-{kind}"] = fakes.build(kind, fakes.ScriptedModel(script=script), tools)
        endless = fakes.ScriptedModel(script=fakes.never_stops("look", parallel=2))
        agents[f"endless-{kind}"] = fakes.build(kind, endless, tools)
        slow = faults.model(delay_s=LONG_S)
        agents[f"slow-{kind}"] = fakes.build(kind, slow, tools)
        failing = faults.model(error=RuntimeError("x"))
        agents[f"model_failed-{kind}"] = fakes.build(kind, failing, tools)
        agents[f"agent_failed-{kind}"] = FAILING_AGENTS[kind]()
        agents[f"nap_cancelled-{kind}"] = agents[f"nap-{kind}"]
        agents[f"nap_left-{kind}"] = agents[f"nap-{kind}"]
    for kind, build in ASKING.items():
        agents[f"asks-{kind}"] = build()
    return agents


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def signals() -> AsyncIterator[Watched]:
    desk = Holding()
    async with watched(_agents(desk), tool_threads=64) as service:
        yield service
        desk.release()
        service.desk.books_balance()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def narrow() -> AsyncIterator[Watched]:
    """One slot and one queue position, so that it is easily full."""
    tools = Holding().tools()
    agents: dict[str, Any] = {}
    for kind in fakes.KINDS:
        model = fakes.ScriptedModel(script=fakes.calls_then_answers("nap"))
        for name in ("holds", "queues", "refused"):
            agents[f"{name}-{kind}"] = fakes.build(kind, model, tools)
    async with watched(agents, max_running_runs=1, max_queued_runs=1) as service:
        yield service
        service.desk.books_balance()


async def agree(
    signals: Watched,
    agent: str,
    run_id: str,
    response: httpx.Response | None,
    outcome: Outcome,
    counts: tuple[int, int],
    *,
    error: str | None = None,
    phase: str | None = None,
    mode: str = "sync",
) -> None:
    """Every signal reports this of the agent's one run, and no signal has an open part of it."""
    iterations, tool_calls = counts
    expected = {"outcome": outcome.value, "iterations": iterations, "tool_calls": tool_calls}
    if response is not None:
        body = response.json()
        assert {name: body[name] for name in expected} == expected
        assert response.headers["x-run-id"] == body["run_id"] == run_id
    await _record_agrees(signals, run_id, expected)
    await _line_agrees(signals, agent, run_id, expected, phase, mode)
    await _spans_agree(signals, agent, run_id, expected, error, phase, mode)
    await _samples_agree(signals, agent, expected, phase, mode)


async def _record_agrees(signals: Watched, run_id: str, expected: dict[str, Any]) -> None:
    record = (await signals.desk.client.get(f"/runs/{run_id}")).json()
    assert {name: record[name] for name in expected} == expected
    assert (record["run_id"], record["state"]) == (run_id, "finished")
    assert len(record["steps"]) == expected["tool_calls"]


async def _line_agrees(
    signals: Watched,
    agent: str,
    run_id: str,
    expected: dict[str, Any],
    phase: str | None,
    mode: str,
) -> None:
    line = await signals.log.one("run_finished", run_id=run_id)
    assert {name: line[name] for name in expected} == expected
    assert (line["agent"], line["mode"], line["timeout_phase"]) == (agent, mode, phase)
    assert line["level"] == LEVELS.get(expected["outcome"], "info")
    assert sum(line["tools"].values()) == expected["tool_calls"]
    timed_out = signals.log.of("run_timed_out", run_id=run_id)
    assert len(timed_out) == (expected["outcome"] == "timeout")


async def _spans_agree(
    signals: Watched,
    agent: str,
    run_id: str,
    expected: dict[str, Any],
    error: str | None,
    phase: str | None,
    mode: str,
) -> None:
    spans = await signals.trace_of(run_id)
    root = root_of(spans, run_id)
    assert root.name == f"invoke_agent {agent}"
    assert {name: root.attributes[f"agent.run.{name}"] for name in expected} == expected
    assert root.attributes["agent.run.mode"] == mode
    assert root.attributes.get("agent.run.timeout.phase") == phase
    assert root.attributes.get("error.type") == error
    assert root.is_error is (expected["outcome"] in ERRORS)
    assert not any(span.status_text or span.events for span in spans)
    tools = [span for span in spans if span.operation == "execute_tool"]
    assert len(tools) == expected["tool_calls"]
    line = signals.log.of("run_finished", run_id=run_id)[0]
    assert line["trace_id"] == root.trace_id
    record = (await signals.desk.client.get(f"/runs/{run_id}")).json()
    in_record = sorted(step["outcome"] for step in record["steps"])
    assert sorted(span.attributes["agent.tool.outcome"] for span in tools) == in_record
    models = signals.log.of("llm_call", run_id=run_id)
    chats = [span for span in spans if span.operation == "chat"]
    assert sorted(span.attributes["agent.call.outcome"] for span in chats) == sorted(
        line["outcome"] for line in models
    )


async def _samples_agree(
    signals: Watched, agent: str, expected: dict[str, Any], phase: str | None, mode: str
) -> None:
    samples = await signals.scrape()
    outcome = expected["outcome"]
    assert samples.nonzero("agent_runs_total", agent=agent) == {(mode, outcome): 1.0}
    assert samples.nonzero("agent_run_duration_seconds_count", agent=agent) == {(outcome,): 1.0}
    assert samples.nonzero("agent_timeouts_total", agent=agent) == (
        {(mode, phase): 1.0} if phase else {}
    )
    hits = samples.total("agent_iteration_limit_hits_total", agent=agent)
    assert hits == (outcome == "iteration_limit")
    assert samples.total("agent_runs_in_flight", agent=agent) == 0
    assert samples.total("agent_run_oldest_age_seconds", agent=agent) == 0
    if outcome != "rejected":
        assert samples.total("agent_run_iterations_sum", agent=agent) == expected["iterations"]
        assert samples.total("agent_run_tool_calls_sum", agent=agent) == expected["tool_calls"]
        calls = samples.total("agent_tool_call_duration_seconds_count", agent=agent)
        assert calls == expected["tool_calls"]


async def asked(signals: Watched, agent: str, **body: Any) -> tuple[str, httpx.Response]:
    """Ask once; gives the run and the response."""
    response = await signals.desk.ask(agent=agent, **body)
    return response.json()["run_id"], response


@kinds
async def test_signals_agree_on_a_completed_run(signals: Watched, kind: str) -> None:
    """Every signal reports the same of a completed run."""
    agent = f"look-{kind}"
    run_id, response = await asked(signals, agent)
    await agree(signals, agent, run_id, response, Outcome.COMPLETED, (1, 2))


@kinds
async def test_signals_agree_on_failed_tools(signals: Watched, kind: str) -> None:
    """Every signal reports a run with failing tools as completed and its tools as failed."""
    agent = f"broken-{kind}"
    run_id, response = await asked(signals, agent)
    await agree(signals, agent, run_id, response, Outcome.COMPLETED, (1, 2))
    samples = await signals.scrape()
    failed = samples.nonzero("agent_tool_call_duration_seconds_count", agent=agent)
    assert failed == {("tool_error", "broken"): 2.0}
    tools = [s for s in await signals.trace_of(run_id) if s.operation == "execute_tool"]
    assert {(s.is_error, s.attributes["error.type"]) for s in tools} == {(True, "tool_error")}


@kinds
async def test_signals_agree_on_the_iteration_limit(signals: Watched, kind: str) -> None:
    """Every signal reports the same of a run that its limit stopped."""
    agent = f"endless-{kind}"
    run_id, response = await asked(signals, agent, max_iterations=3)
    assert response.status_code == 200
    expected = Outcome.ITERATION_LIMIT
    await agree(signals, agent, run_id, response, expected, (3, 6), error="iteration_limit")
    assert (await signals.log.one("iteration_limit_reached", run_id=run_id))["iteration_limit"] == 3


@kinds
@pytest.mark.parametrize(
    ("holder", "phase", "counts"),
    [
        ("slow", "llm", (0, 0)),
        ("nap", "tool", (1, 2)),
        ("block", "tool", (1, 2)),
        ("stubborn", "tool", (1, 2)),
    ],
)
async def test_signals_agree_on_a_timeout(
    signals: Watched, kind: str, holder: str, phase: str, counts: tuple[int, int]
) -> None:
    """Every signal reports the same of a run that timed out, whatever blocked it."""
    agent = f"{holder}-{kind}"
    asking = asyncio.ensure_future(asked(signals, agent))
    await signals.desk.times_out(agent, "llm" if phase == "llm" else f"tool:{holder}", counts[1])
    run_id, response = await asking
    assert response.status_code == 504
    expected: dict[str, Any] = {"error": "timeout", "phase": phase}
    await agree(signals, agent, run_id, response, Outcome.TIMEOUT, counts, **expected)


@kinds
@pytest.mark.parametrize("code", ["model_failed", "agent_failed"])
async def test_signals_agree_on_a_failure(signals: Watched, kind: str, code: str) -> None:
    """Every signal reports the same of a failed run, whatever failed."""
    agent = f"{code}-{kind}"
    run_id, response = await asked(signals, agent)
    assert response.status_code == 500
    # No executor has acted on a turn whose parser raises, so that is none.
    await agree(signals, agent, run_id, response, Outcome.FAILED, (0, 0), error=code)


@kinds
async def test_signals_agree_on_a_cancelled_run(signals: Watched, kind: str) -> None:
    """Every signal reports the same of a cancelled run."""
    agent = f"nap_cancelled-{kind}"
    asking = asyncio.ensure_future(signals.desk.ask(agent=agent))
    run_id = await signals.held(agent, "tool:nap", 2)
    await signals.desk.client.delete(f"/runs/{run_id}")
    response = await asking
    assert response.status_code == 503
    await agree(signals, agent, run_id, response, Outcome.CANCELLED, (1, 2))


@kinds
async def test_signals_agree_on_a_disconnect(signals: Watched, kind: str) -> None:
    """Every signal reports the same of a run whose caller disconnected."""
    agent = f"nap_left-{kind}"
    async with wire.connection(signals.desk.url) as (_, writer):
        writer.write(wire.ask(f"/agents/{agent}", question="q"))
        run_id = await signals.held(agent, "tool:nap", 2)
    await signals.desk.not_executing(run_id)
    await agree(signals, agent, run_id, None, Outcome.DISCONNECTED, (1, 2))


@pytest.mark.parametrize(("kind", "counts"), [("create_agent", (1, 1)), ("langgraph", (0, 0))])
async def test_signals_agree_on_an_interrupt(
    signals: Watched, kind: str, counts: tuple[int, int]
) -> None:
    """Every signal reports the same of a run that asks for a human, and none an error."""
    agent = f"asks-{kind}"
    run_id, response = await asked(signals, agent)
    assert response.status_code == 500
    await agree(signals, agent, run_id, response, Outcome.INTERRUPTED, counts)


@kinds
async def test_signals_agree_on_queued_and_refused_runs(narrow: Watched, kind: str) -> None:
    """Every signal reports the same of a run that ends in the queue and of a refused one."""
    narrow.desk.service.runner.admission.mean_service_s = None  # else the queue is refused at once
    holding = asyncio.ensure_future(narrow.desk.ask(agent=f"holds-{kind}"))
    await narrow.held(f"holds-{kind}", "tool:nap")
    queued = asyncio.ensure_future(asked(narrow, f"queues-{kind}"))
    await narrow.held(f"queues-{kind}", "queue")
    refused_id, refused = await asked(narrow, f"refused-{kind}")
    assert refused.status_code == 503
    await agree(narrow, f"refused-{kind}", refused_id, refused, Outcome.REJECTED, (0, 0))
    await narrow.desk.times_out(f"queues-{kind}", "queue")
    queued_id, response = await queued
    assert response.status_code == 504
    expected: dict[str, Any] = {"error": "timeout", "phase": "queue"}
    await agree(narrow, f"queues-{kind}", queued_id, response, Outcome.TIMEOUT, (0, 0), **expected)
    await narrow.desk.times_out(f"holds-{kind}", "tool:nap")
    await holding


@kinds
async def test_span_of_a_queued_run_has_its_deadline(narrow: Watched, kind: str) -> None:
    """The span of a run has its deadline and its limit even if the run never started."""
    names = (f"invoke_agent queues-{kind}", f"invoke_agent refused-{kind}")
    spans = [span for span in narrow.collector.spans if span.name in names]
    assert len(spans) == 2
    for span in spans:
        assert span.attributes["agent.run.iteration_limit"] == 10
        assert "agent.run.deadline_s" in span.attributes, span.name
