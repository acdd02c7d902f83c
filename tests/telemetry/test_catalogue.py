"""What Prometheus scrapes from a live service: the contract's table."""

import math
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from app.telemetry import catalogue
from tests.telemetry.busy import OPTIONS, agents, exercise
from tests.telemetry.watched import Scrape, Watched, parsed, watched

pytestmark = pytest.mark.asyncio(loop_scope="module")

# The table of the contract: type and labels of what has a source by now.
TABLE = {
    "agent_build_info": ("gauge", "version commit python langchain langgraph"),
    "agent_runs": ("counter", "agent mode outcome"),
    "agent_run_duration_seconds": ("histogram", "agent outcome"),
    "agent_run_queue_wait_seconds": ("histogram", "agent"),
    "agent_run_iterations": ("histogram", "agent"),
    "agent_run_iteration_ratio": ("histogram", "agent"),
    "agent_run_tool_calls": ("histogram", "agent"),
    "agent_iteration_limit_hits": ("counter", "agent"),
    "agent_timeouts": ("counter", "agent mode phase"),
    "agent_wasted_seconds": ("counter", "agent outcome"),
    "agent_wasted_tokens": ("counter", "agent outcome"),
    "agent_runs_in_flight": ("gauge", "agent mode state"),
    "agent_run_oldest_age_seconds": ("gauge", "agent state"),
    "agent_iteration_limit": ("gauge", "agent"),
    "agent_deadline_seconds": ("gauge", "agent"),
    "agent_concurrency_limit": ("gauge", ""),
    "agent_last_success_timestamp_seconds": ("gauge", "agent"),
    "agent_llm_call_duration_seconds": ("histogram", "agent provider model outcome"),
    "agent_llm_time_to_first_token_seconds": ("histogram", "agent provider model"),
    "agent_llm_tokens": ("counter", "agent provider model type"),
    "agent_llm_cost_usd": ("counter", "agent provider model"),
    "agent_llm_unpriced_calls": ("counter", "agent provider model"),
    "agent_llm_retries": ("counter", "agent provider model reason"),
    "agent_tool_call_duration_seconds": ("histogram", "agent tool outcome"),
    "agent_tool_rejected_calls": ("counter", "agent reason"),
    "agent_tool_threads_abandoned": ("gauge", ""),
    "agent_tool_threads_busy": ("gauge", ""),
    "agent_tool_threads_limit": ("gauge", ""),
    "agent_tool_tasks_abandoned": ("gauge", ""),
    "agent_requests_rejected": ("counter", "reason"),
    "agent_ready": ("gauge", "check"),
    "agent_event_loop_lag_seconds": ("histogram", ""),
    "agent_event_loop_blocked": ("counter", ""),
    "agent_telemetry_errors": ("counter", "sink"),
    "agent_telemetry_label_overflow": ("counter", "label"),
    "agent_telemetry_spans_dropped": ("counter", "reason"),
    "agent_log_records_dropped": ("counter", ""),
    "http_server_request_duration_seconds": ("histogram", "route method status"),
}
OUTCOMES = "completed iteration_limit timeout failed cancelled disconnected interrupted rejected"
AT_ZERO = {
    "agent_runs_total": 3 * 8,
    "agent_iteration_limit_hits_total": 1,
    "agent_timeouts_total": 3 * 4,
    "agent_wasted_seconds_total": 4,
    "agent_wasted_tokens_total": 4,
    "agent_tool_rejected_calls_total": 2,
}
AT_ZERO_FOR_ALL = {
    "agent_requests_rejected_total": {"overloaded", "draining", "store_unavailable"},
    "agent_telemetry_errors_total": None,
    "agent_telemetry_label_overflow_total": None,
    "agent_telemetry_spans_dropped_total": None,
}
BUCKETS = {
    "agent_run_duration_seconds": "0.1 0.25 0.5 1 2.5 5 10 20 30 60 120 180 300 600",
    "agent_run_queue_wait_seconds": "0.01 0.05 0.1 0.5 1 5 15 30 60 120 300",
    "agent_run_iterations": "0 1 2 3 4 5 6 8 10 12 16 24 32 64",
    "agent_run_iteration_ratio": "0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1",
    "agent_run_tool_calls": "0 1 2 4 8 16 32 64",
    "agent_llm_call_duration_seconds": "0.1 0.25 0.5 1 2 4 8 15 30 60 120",
    "agent_llm_time_to_first_token_seconds": "0.05 0.1 0.25 0.5 1 2 4 8 15 30",
    "agent_tool_call_duration_seconds": "0.01 0.05 0.1 0.25 0.5 1 2.5 5 10 30 60 120",
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def signals() -> AsyncIterator[Watched]:
    async with watched(agents(), tracing=False, **OPTIONS) as service:
        yield service


def bounds(samples: Scrape, name: str, **labels: str) -> list[float]:
    """The edges of a histogram's buckets."""
    found = {float(s.labels["le"]) for s in samples.all(f"{name}_bucket", **labels)}
    return sorted(found - {math.inf})


async def test_counters_start_at_zero(signals: Watched) -> None:
    """Every counter of enums and agents has all of its children, at 0, before the first run."""
    samples = await signals.scrape()
    for name, children in AT_ZERO.items():
        found = samples.all(name, agent="fresh")
        assert [sample.value for sample in found] == [0.0] * children, name
    for name, values in AT_ZERO_FOR_ALL.items():
        found = samples.all(name)
        assert found, name
        assert not any(sample.value for sample in found)
        assert values is None or {next(iter(s.labels.values())) for s in found} == values
    assert {s.labels["outcome"] for s in samples.all("agent_runs_total")} == set(OUTCOMES.split())
    assert samples.all("agent_log_records_dropped_total")
    # Zero, unless the machine itself stood still: then as many as were logged.
    blocked = samples.total("agent_event_loop_blocked_total")
    await signals.logged("event_loop_blocked", int(blocked))
    assert samples.all("agent_event_loop_blocked_total")


async def test_every_metric_of_the_contract_exists(signals: Watched) -> None:
    """Every metric of the contract that has a source exists, of its type and with its labels."""
    await exercise(signals)
    samples = await signals.scrape()
    for name, (kind, labels) in TABLE.items():
        family = samples.families[name]
        assert family.type == kind, name
        assert family.documentation, name
        assert family.samples, name
        found = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        assert found == {frozenset(labels.split())}, name
    named = {metric.name.removesuffix("_total") for metric in catalogue.METRICS}
    assert set(TABLE) <= named


async def test_every_metric_is_in_the_catalogue(signals: Watched) -> None:
    """Every metric is in the catalogue, or is Python's, the process's or the SDK's own."""
    named = {metric.name.removesuffix("_total") for metric in catalogue.METRICS}
    others = ("process_", "python_", "otel_")
    for name in (await signals.scrape()).families:
        assert name in named or name.startswith(others), name


async def test_buckets_are_those_of_the_contract(signals: Watched) -> None:
    """The edges of the buckets are those of the contract, with the deadline and the limits."""
    await exercise(signals)
    samples = await signals.scrape()
    extra = {"agent_run_duration_seconds": {17.0}, "agent_run_iterations": {7.0, 10.0}}
    for name, edges in BUCKETS.items():
        expected = {float(edge) for edge in edges.split()} | extra.get(name, set())
        assert bounds(samples, name) == sorted(expected), name


async def test_limits_are_metrics(signals: Watched) -> None:
    """Limits are metrics too, so that an alert can compare."""
    samples = await signals.scrape()
    assert samples.total("agent_deadline_seconds", agent="look") == 17
    assert samples.total("agent_iteration_limit", agent="limited") == 7
    assert samples.total("agent_iteration_limit", agent="look") == 10
    assert samples.total("agent_concurrency_limit") == 40
    assert samples.total("agent_tool_threads_limit") == 9
    (info,) = samples.all("agent_build_info")
    assert info.value == 1
    assert all(info.labels[name] for name in ("version", "python", "langchain", "langgraph"))


async def test_metrics_in_both_formats(signals: Watched) -> None:
    """/metrics answers at its own path, as text or as OpenMetrics, whatever Accept says."""
    client = signals.desk.client
    text = await client.get("/metrics", headers={"accept": "text/plain"})
    browser = await client.get("/metrics", headers={"accept": "text/html,*/*;q=0.8"})
    prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4"
    opened = await client.get("/metrics", headers={"accept": prometheus})
    for response in (text, browser, opened):
        assert response.status_code == 200
        assert not response.history
    assert text.headers["content-type"].startswith("text/plain; version=")
    assert browser.headers["content-type"].startswith("text/plain")
    assert opened.headers["content-type"].startswith("application/openmetrics-text")
    assert set(parsed(text).families) <= set(parsed(opened).families)
    assert not any(name.endswith("_created") for name in parsed(text).families)
