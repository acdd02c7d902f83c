"""Which metric each event of a run increases."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests import wire
from tests.service import until
from tests.telemetry.busy import OPTIONS, agents
from tests.telemetry.holding import Holding
from tests.telemetry.watched import Watched, watched

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def holding() -> Holding:
    """The desk whose tools the agents use."""
    return Holding()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def signals(holding: Holding) -> AsyncIterator[Watched]:
    async with watched(agents(holding), tracing=False, **OPTIONS) as service:
        yield service
        holding.release()


async def test_wasted_time_and_tokens(signals: Watched) -> None:
    """A run without an answer is wasted time and tokens, without its time in the queue."""
    before = await signals.scrape()
    asking = asyncio.ensure_future(signals.desk.ask(agent="nap"))
    await signals.held("nap", "tool:nap")
    await signals.counted("agent_run_oldest_age_seconds", 0.2, agent="nap", state="running")
    await signals.desk.times_out("nap", "tool:nap")
    took = (await asking).json()["timings"]
    after = await signals.scrape()
    labels = {"agent": "nap", "outcome": "timeout"}
    seconds, tokens = "agent_wasted_seconds_total", "agent_wasted_tokens_total"
    spent = after.total(seconds, **labels) - before.total(seconds, **labels)
    assert spent == pytest.approx(sum(took.values()) - took["queue_s"], abs=0.01)
    assert spent >= 0.2
    assert after.total(tokens, **labels) - before.total(tokens, **labels) == 15
    assert after.total(seconds, agent="look") == 0


async def test_tokens_and_cost(signals: Watched) -> None:
    """Tokens are counted by type, and cost for a model with a price only."""
    before = await signals.scrape()
    run = (await signals.desk.ask(agent="priced")).json()
    assert (await signals.desk.ask(agent="unpriced")).json()["usage"]["cost_usd"] is None
    after = await signals.scrape()
    priced = {"agent": "priced", "provider": "acme", "model": "gpt-4o"}
    unpriced = {"agent": "unpriced", "provider": "acme", "model": "made-up"}
    expected = {
        "input": 1000, "output": 100, "cache_read": 400, "cache_creation": 200, "reasoning": 60
    }  # fmt: skip
    for kind, count in expected.items():
        name = "agent_llm_tokens_total"
        counted = after.total(name, type=kind, **priced) - before.total(name, type=kind, **priced)
        assert counted == count, kind
    cost = "agent_llm_cost_usd_total"
    spent = after.total(cost, **priced) - before.total(cost, **priced)
    assert spent == pytest.approx(run["usage"]["cost_usd"])
    assert spent > 0
    calls = "agent_llm_unpriced_calls_total"
    assert after.total(calls, **unpriced) - before.total(calls, **unpriced) == 1
    assert after.total(calls, **priced) == 0
    assert not after.all(cost, **unpriced)


async def test_model_retry_is_counted_with_its_reason(signals: Watched) -> None:
    """A repeated model call is counted as a retry, with its reason, and is no iteration."""
    await signals.desk.ask(agent="retries")
    samples = await signals.scrape()
    assert samples.nonzero("agent_llm_retries_total", agent="retries") == {
        ("gpt-4o", "acme", "failed"): 2.0
    }
    assert samples.total("agent_run_iterations_sum", agent="retries") == 0
    name = "agent_llm_call_duration_seconds_count"
    calls = samples.nonzero(name, agent="retries", provider="acme", model="gpt-4o")
    assert calls[("failed",)] == 2


async def test_time_to_first_token_of_streams_only(signals: Watched) -> None:
    """The time to the first token is recorded for streamed calls only."""
    await signals.desk.ask(agent="streams")
    await signals.desk.ask(agent="look")
    samples = await signals.scrape()
    name = "agent_llm_time_to_first_token_seconds_count"
    assert samples.total(name, agent="streams") >= 1
    assert samples.total(name, agent="look") == 0


async def test_rejected_calls(signals: Watched) -> None:
    """Unknown tools and invalid arguments are counted apart."""
    before = await signals.scrape()
    await signals.desk.ask(agent="invents")
    await signals.desk.ask(agent="mistakes")
    after = await signals.scrape()
    name = "agent_tool_rejected_calls_total"
    for agent, reason in (("invents", "unknown_tool"), ("mistakes", "invalid_args")):
        labels = {"agent": agent, "reason": reason}
        assert after.total(name, **labels) - before.total(name, **labels) == 1
    assert "invented" not in after.text


async def test_gauges_show_a_hanging_run(signals: Watched) -> None:
    """While a run hangs, the gauges show it and its age; afterwards they are 0 again."""
    began = time.monotonic()
    asking = asyncio.ensure_future(signals.desk.ask(agent="nap"))
    await signals.held("nap", "tool:nap")
    samples = await signals.scrape()
    assert samples.nonzero("agent_runs_in_flight") == {("nap", "sync", "running"): 1.0}
    first = samples.total("agent_run_oldest_age_seconds", agent="nap", state="running")
    samples = await signals.counted(
        "agent_run_oldest_age_seconds", at_least=first + 0.15, agent="nap", state="running"
    )
    later = samples.total("agent_run_oldest_age_seconds", agent="nap", state="running")
    assert later <= time.monotonic() - began
    await signals.desk.times_out("nap", "tool:nap")
    await asking
    samples = await signals.scrape()
    assert not samples.nonzero("agent_runs_in_flight")
    assert not samples.nonzero("agent_run_oldest_age_seconds")


async def test_abandoned_threads_and_tasks_are_counted(signals: Watched, holding: Holding) -> None:
    """Threads and tasks that outlive their runs are counted exactly, as long as they go on."""
    called = ("block", "block", "stubborn")
    runs = [asyncio.ensure_future(signals.desk.ask(agent=agent)) for agent in called]
    started = holding.started
    await until(lambda: (started.count("block"), started.count("stubborn")) == (2, 1))
    for agent in called:
        await signals.desk.times_out(agent, f"tool:{agent}")
    await asyncio.gather(*runs)
    samples = await signals.scrape()
    found = {
        name: samples.total(f"agent_tool_{name}")
        for name in ("threads_busy", "threads_abandoned", "tasks_abandoned")
    }
    assert found == {"threads_busy": 2, "threads_abandoned": 2, "tasks_abandoned": 1}
    assert (await signals.log.one("tool_thread_abandoned", agent="stubborn"))["tasks"] == 1
    holding.release()
    service = signals.desk.service
    await until(lambda: not service.threads.busy and not service.runner.stuck_tasks)
    samples = await signals.scrape()
    assert not any(samples.total(f"agent_tool_{name}") for name in found)


async def test_last_success_moves_with_a_success_only(signals: Watched) -> None:
    """The time of the last success moves with a success and nothing else."""
    name = "agent_last_success_timestamp_seconds"
    await signals.desk.ask(agent="nap", timeout=0.1)
    assert (await signals.scrape()).total(name, agent="nap") == 0
    before = time.time()
    await signals.desk.ask(agent="look")
    at = (await signals.scrape()).total(name, agent="look")
    assert before <= at <= time.time()


async def test_requests_are_counted_by_route_method_and_status(signals: Watched) -> None:
    """Requests are counted by the template of their route, their method and their status."""
    await signals.desk.ask(agent="look")
    await signals.desk.client.get("/runs/nothing")
    await wire.exchange(signals.desk.url, wire.request("GET", "/made-up"))
    name = "http_server_request_duration_seconds_count"
    wanted = (
        {"route": "/agents/{name}", "method": "POST", "status": "200"},
        {"route": "/runs/{run_id}", "method": "GET", "status": "404"},
        {"route": "_other", "method": "GET", "status": "404"},
        {"route": "/metrics", "method": "GET", "status": "200"},
    )
    for labels in wanted:
        samples = await signals.counted(name, 1, **labels)
    assert "made-up" not in {s.labels["route"] for s in samples.all(name)}
