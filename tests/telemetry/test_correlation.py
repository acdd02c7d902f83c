"""From a sample to its trace, from the trace to its run, from the run to its record."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from prometheus_client.samples import Exemplar

from app.agents.models import upstream
from tests import fakes, faults
from tests.telemetry.watched import (
    OPENMETRICS,
    Scrape,
    Watched,
    parent_of,
    root_of,
    watched,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
kinds = pytest.mark.parametrize("kind", fakes.KINDS)
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Provider:
    """A model provider that only looks at the headers it is sent."""

    def __init__(self) -> None:
        self.url = ""
        self.sent: list[dict[str, str]] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        pairs = (line.partition(":") for line in head.strip().splitlines()[1:])
        self.sent.append({name.lower(): value.strip() for name, _, value in pairs})
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()


PROVIDER = Provider()


@tool
async def outward() -> str:
    """Ask a provider by the client that our builder uses."""
    pool = upstream.current()
    client = await asyncio.to_thread(pool.client)  # it reads certificates when it is made
    return str((await client.get(PROVIDER.url)).status_code)


def _agents() -> dict[str, Any]:
    tools = [*fakes.ToolDesk(2.0).tools(), outward]
    agents: dict[str, Any] = {}
    for kind in fakes.KINDS:
        for name in ("look", "nap", "outward"):
            model = fakes.ScriptedModel(script=fakes.calls_then_answers(name))
            agents[f"{name}-{kind}"] = fakes.build(kind, model, tools)
        agents[f"joins-{kind}"] = agents[f"look-{kind}"]
        endless = fakes.ScriptedModel(script=fakes.never_stops("look"))
        agents[f"endless-{kind}"] = fakes.build(kind, endless, tools)
    agents["fails"] = faults.graph_that_raises(RuntimeError("x"))
    for name in ("health-desk", "metrics", "healthy"):
        agents[name] = agents["look-create_agent"]
    return agents


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def signals() -> AsyncIterator[Watched]:
    async with watched(_agents()) as service:
        yield service


def exemplars(samples: Scrape, name: str, agent: str) -> list[Exemplar]:
    """Those of a metric for one agent."""
    found = [s.exemplar for s in samples.all(name, agent=agent) if s.exemplar]
    return found


async def follow(signals: Watched, metric: str, agent: str, run_id: str, span: str) -> None:
    """From the exemplar of a metric to its span, to the log, to the record of the run."""
    samples = await signals.scrape(OPENMETRICS)
    (exemplar,) = exemplars(samples, metric, agent)
    await signals.trace_of(run_id)
    trace = [s for s in signals.collector.spans if s.trace_id == exemplar.labels["trace_id"]]
    (pointed,) = [s for s in trace if s.span_id == exemplar.labels["span_id"]]
    assert pointed.name == span
    line = await signals.log.one("run_finished", trace_id=exemplar.labels["trace_id"])
    assert line["run_id"] == run_id
    assert root_of(trace, run_id).attributes["agent.run.id"] == run_id
    record = await signals.desk.client.get(f"/runs/{line['run_id']}")
    assert (record.status_code, record.json()["run_id"]) == (200, run_id)


@kinds
async def test_exemplar_leads_to_the_run(signals: Watched, kind: str) -> None:
    """Each exemplar of a run leads to its span, its log line and its record."""
    agent = f"look-{kind}"
    run_id = (await signals.desk.ask(agent=agent)).json()["run_id"]
    root = f"invoke_agent {agent}"
    await follow(signals, "agent_runs_total", agent, run_id, root)
    await follow(signals, "agent_run_duration_seconds_bucket", agent, run_id, root)
    tool_calls = "agent_tool_call_duration_seconds_bucket"
    await follow(signals, tool_calls, agent, run_id, "execute_tool look")
    samples = await signals.scrape(OPENMETRICS)
    chats = exemplars(samples, "agent_llm_call_duration_seconds_bucket", agent)
    spans = {span.span_id: span for span in signals.collector.trace_of(run_id)}
    assert {spans[e.labels["span_id"]].operation for e in chats} == {"chat"}


@kinds
async def test_exemplar_of_an_alert_leads_to_the_run(signals: Watched, kind: str) -> None:
    """The exemplars of timeouts and of limits lead to the run in question."""
    slow, endless = f"nap-{kind}", f"endless-{kind}"
    run_id = (await signals.desk.ask(agent=slow, timeout=0.2)).json()["run_id"]
    await follow(signals, "agent_timeouts_total", slow, run_id, f"invoke_agent {slow}")
    run_id = (await signals.desk.ask(agent=endless, max_iterations=1)).json()["run_id"]
    metric = "agent_iteration_limit_hits_total"
    await follow(signals, metric, endless, run_id, f"invoke_agent {endless}")


async def test_exemplars_only_where_they_are_allowed(signals: Watched) -> None:
    """Plain text has no exemplars, and OpenMetrics has them on counters and histograms only."""
    await signals.desk.ask(agent="look-langgraph")
    assert "trace_id" not in (await signals.scrape()).text
    for family in (await signals.scrape(OPENMETRICS)).families.values():
        for sample in family.samples:
            assert not sample.exemplar or family.type in ("counter", "histogram")


@kinds
async def test_every_line_of_a_run_has_its_ids(signals: Watched, kind: str) -> None:
    """Every line of a run has its run, agent and trace; a span id names the part."""
    agent = f"look-{kind}"
    run_id = (await signals.desk.ask(agent=agent)).json()["run_id"]
    spans = {span.span_id: span for span in await signals.trace_of(run_id)}
    await signals.log.one("run_finished", run_id=run_id)  # the last of them
    lines = signals.log.of(run_id=run_id)
    assert {"run_started", "run_finished", "llm_call", "tool_call"} <= {x["event"] for x in lines}
    for line in lines:
        assert line["agent"] == agent
        assert line["span_id"] in spans, line
        assert spans[line["span_id"]].trace_id == line["trace_id"]


async def test_request_finished_is_in_the_trace(signals: Watched) -> None:
    """The line about a request is in the trace of that request."""
    run = (await signals.desk.ask(agent="look-langgraph")).json()
    await signals.trace_of(run["run_id"])
    await signals.log.one("request_finished", trace_id=run["trace_id"])


@kinds
async def test_run_joins_the_trace_of_its_caller(signals: Watched, kind: str) -> None:
    """A run whose caller sends a traceparent is part of the caller's trace."""
    response = await signals.desk.client.post(
        f"/agents/joins-{kind}",
        json={"question": "q"},
        headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"},
    )
    run = response.json()
    assert run["trace_id"] == TRACE_ID
    spans = await signals.trace_of(run["run_id"])
    assert {span.trace_id for span in spans} == {TRACE_ID}
    (server,) = [s for s in spans if s.kind == "SERVER" and run["run_id"] in str(s.attributes)]
    assert server.parent_id == PARENT_ID
    assert server.name == "POST /agents/{name}"
    assert parent_of(root_of(spans, run["run_id"]), spans) == server


@pytest.mark.parametrize(
    ("agent", "body", "status"),
    [
        ("look-langgraph", {}, 200),
        ("endless-create_agent", {"max_iterations": 1}, 200),
        ("nap-agent_executor", {"timeout": 0.2}, 504),
        ("fails", {}, 500),
    ],
)
async def test_traceresponse(
    signals: Watched, agent: str, body: dict[str, Any], status: int
) -> None:
    """The answer about a run names its trace and the server's span in W3C's header."""
    response = await signals.desk.ask(agent=agent, **body)
    assert response.status_code == status
    header = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-01", response.headers["traceresponse"])
    assert header
    spans = await signals.trace_of(response.json()["run_id"])
    (server,) = [span for span in spans if span.kind == "SERVER"]
    assert header.groups() == (server.trace_id, server.span_id)
    assert response.json()["trace_id"] == server.trace_id


async def test_record_has_its_run_id_and_trace_id(signals: Watched) -> None:
    """The record of a run has the run's id in its header, and its trace in its body."""
    run = (await signals.desk.ask(agent="look-langgraph")).json()
    record = await signals.desk.client.get(f"/runs/{run['run_id']}")
    assert record.headers["x-run-id"] == run["run_id"]
    assert record.json()["trace_id"] == run["trace_id"]


@pytest.mark.parametrize("agent", ["healthy", "health-desk", "metrics"])
async def test_agent_named_like_a_probe_is_traced(signals: Watched, agent: str) -> None:
    """An agent whose name looks like a probe's address is traced like any other."""
    response: httpx.Response = await signals.desk.ask(agent=agent)
    run = response.json()
    assert run["trace_id"] is not None
    assert "SERVER" in {span.kind for span in await signals.trace_of(run["run_id"])}


async def test_baggage_is_not_recorded(signals: Watched) -> None:
    """A caller's baggage is neither on a span nor sent on, while the trace is."""
    provider = await asyncio.start_server(PROVIDER.answer, "127.0.0.1", 0)
    PROVIDER.url = f"http://127.0.0.1:{provider.sockets[0].getsockname()[1]}/"
    for kind in fakes.KINDS:
        response = await signals.desk.client.post(
            f"/agents/outward-{kind}",
            json={"question": "q"},
            headers={
                "baggage": "tenant=canary-baggage",
                "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
            },
        )
        assert response.json()["answer"].endswith("200"), response.text
        await signals.trace_of(response.json()["run_id"])
    provider.close()
    assert len(PROVIDER.sent) == len(fakes.KINDS)
    tools = {s.span_id for s in signals.collector.spans if s.name == "execute_tool outward"}
    for headers in PROVIDER.sent:
        assert "baggage" not in headers
        _, trace_id, span_id, _ = headers["traceparent"].split("-")
        assert trace_id == "a" * 32
        assert span_id in tools
    assert not any(b"canary-baggage" in body for body in signals.collector.raw)


@pytest.mark.asyncio(loop_scope="function")
async def test_sampled_flag_of_a_caller_is_not_trusted() -> None:
    """A caller's sampled flag does not bypass the sampling that the operator chose."""
    sampling = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
    model = fakes.ScriptedModel(script=lambda messages: AIMessage("done"))
    agents = {"a": fakes.build("langgraph", model, [])}
    async with watched(agents, variables=sampling) as signals:
        response = await signals.desk.client.post(
            "/agent",
            json={"question": "q"},
            headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"},
        )
        assert response.json()["trace_id"] is None
        samples = await signals.scrape(OPENMETRICS)
        assert not any(sample.exemplar for sample in samples.samples)
    assert signals.collector.spans == []
