"""A failing pipeline loses telemetry, which is counted, and never a request."""

import asyncio
import socket
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from app.runs.events import Event, RunFinished
from app.telemetry.fanout import Fanout
from tests import fakes, otlp
from tests.telemetry.watched import Watched, watched

RUNS = 60
# Generous: such a run takes a few milliseconds, and a collector's timeout is a second or more.
SLOW_S = 0.8
QUEUE = 40
SMALL = {
    "OTEL_BSP_MAX_QUEUE_SIZE": str(QUEUE),
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "1",
}
DROPPED = "agent_telemetry_spans_dropped_total"
ERRORS = "agent_telemetry_errors_total"


def _agents() -> dict[str, Any]:
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("look"))
    return {"a": fakes.build("langgraph", model, fakes.ToolDesk().tools())}


async def ask_many(signals: Watched) -> int:
    """Ask, a few at a time, without delays; returns the number of spans."""
    took_s = list[float]()

    async def ask() -> None:
        began = time.monotonic()
        assert (await signals.desk.ask()).status_code == 200
        took_s.append(time.monotonic() - began)

    for _ in range(RUNS // 5):
        await asyncio.gather(*(ask() for _ in range(5)))
    assert median(took_s) < SLOW_S
    return RUNS * 5  # the server's, the run's, two chats and a tool call


def queued(signals: Watched) -> int:
    """How many spans wait."""
    export = signals.desk.pipeline.export
    assert export is not None
    return len(export._processor._batch_processor._queue)


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1/traces"


async def test_unreachable_collector_delays_no_request(nowhere: str) -> None:
    """With an unreachable collector no request is slower, and lost spans are counted."""
    variables = {**SMALL, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": nowhere}
    async with watched(_agents(), variables=variables, level="info") as signals:
        made = await ask_many(signals)
        assert queued(signals) <= QUEUE
        samples = await signals.scrape()
        assert samples.total(DROPPED, reason="queue_full") > 0
        await signals.counted(DROPPED, reason="export_failed")
        assert (await signals.scrape()).total(DROPPED) <= made
        began = time.monotonic()
    assert time.monotonic() - began < 15


async def test_hanging_collector_delays_no_request() -> None:
    """With a hanging collector no request is slower, the queue is bounded, drops are counted."""
    with otlp.receiver() as collector:
        collector.hangs.set()
        async with watched(
            _agents(), collector=collector, variables=SMALL, level="info"
        ) as signals:
            made = await ask_many(signals)
            assert queued(signals) <= QUEUE
            # What waits and what is on its way is not lost yet; a span ends after its answer came.
            samples = await signals.counted(DROPPED, at_least=made - QUEUE - 10)
            assert samples.total(DROPPED) <= made
            assert not signals.desk.service.runner.in_flight
            collector.hangs.clear()


async def test_spans_are_resent_after_a_503() -> None:
    """After a 503 the same spans are sent again: none is lost or counted as lost."""
    with otlp.receiver(503) as collector:
        async with watched(_agents(), collector=collector, level="info") as signals:
            made = await ask_many(signals)
            await signals.delivered(made)
            assert (await signals.scrape()).total(DROPPED) == 0
    assert len({span.span_id for span in collector.spans}) == made
    assert collector.answers == []


async def test_refused_spans_are_counted_as_lost() -> None:
    """Spans that a collector refuses for good are counted as lost."""
    with otlp.receiver(*[400] * 1000) as collector:
        async with watched(_agents(), collector=collector, level="info") as signals:
            made = await ask_many(signals)
            await signals.flush()
            samples = await signals.counted(DROPPED, at_least=made, reason="export_failed")
            assert samples.total(DROPPED, reason="export_failed") == made


async def test_shutdown_delivers_every_ended_span() -> None:
    """A service that stops delivers every ended span, however long its batches wait."""
    slow = {"OTEL_BSP_SCHEDULE_DELAY": "60000"}
    async with watched(_agents(), variables=slow, level="info") as signals:
        made = await ask_many(signals)
    assert len(signals.collector.spans) == made


async def test_no_endpoint_means_no_spans() -> None:
    """Without an endpoint there are no spans, no trace ids and no log lines about it."""
    async with watched(_agents(), tracing=False) as signals:
        run = (await signals.desk.ask()).json()
        assert run["trace_id"] is None
        line = await signals.log.one("run_finished", run_id=run["run_id"])
        assert line["trace_id"] is None
        assert signals.desk.pipeline.export is None
    assert signals.collector.requests == 0
    assert not [line for line in signals.log.lines if "opentelemetry" in line["logger"]]


@pytest.mark.parametrize("sink", ["metrics", "traces", "logs"])
async def test_failing_sink_is_counted(sink: str) -> None:
    """A sink that raises is counted; the other sinks and the run go on."""
    facts: list[Event] = []

    def broken(fact: Event) -> None:
        facts.append(fact)
        raise ValueError("secret-in-exception")

    async with watched(_agents(), level="info") as signals:
        emit = signals.desk.pipeline.emit
        assert isinstance(emit, Fanout)
        emit._sinks = ((sink, broken), *emit._sinks)
        response = await signals.desk.ask()
        assert response.json()["outcome"] == "completed"
        samples = await signals.scrape()
        assert samples.total(ERRORS, sink=sink) == len(facts) == samples.total(ERRORS)
        assert samples.total("agent_runs_total", outcome="completed") == 1
        run_id = response.json()["run_id"]
        await signals.log.one("run_finished", run_id=run_id)
        assert await signals.trace_of(run_id)
        assert "secret-in-exception" not in signals.log.text
    assert isinstance(facts[-1], RunFinished)


async def test_degradation_is_logged_once(nowhere: str) -> None:
    """A collector that is down, and a sink that raises, are logged in one line."""

    def broken(fact: Event) -> None:
        raise ValueError("secret-in-exception")

    variables = {**SMALL, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": nowhere}
    async with watched(_agents(), variables=variables, level="info") as signals:
        await ask_many(signals)
        await signals.counted(DROPPED, reason="export_failed")
        of_spans = len(await signals.logged("telemetry_degraded", level="warning"))
        emit = signals.desk.pipeline.emit
        assert isinstance(emit, Fanout)
        emit.add("logs", broken)
        await ask_many(signals)
    both = len(signals.log.of("telemetry_degraded", level="warning"))
    assert 1 <= of_spans < both < 20


async def test_span_with_an_invalid_name_loses_no_other() -> None:
    """A span whose name is half a surrogate pair takes no other span with it."""
    async with watched(_agents(), variables={"OTEL_BSP_SCHEDULE_DELAY": "60000"}) as signals:
        export = signals.desk.pipeline.export
        assert export is not None
        run_id = (await signals.desk.ask()).json()["run_id"]
        tracer = export.provider.get_tracer("theirs")
        tracer.start_span("half \udcaf").end()
        whole = tracer.start_span("whole")
        whole.set_attribute("half", "\udcaf")
        whole.end()
        await signals.flush()
        assert await signals.trace_of(run_id)
        await signals.delivered(name="whole")
        assert (await signals.scrape()).nonzero(DROPPED) == {("export_failed",): 1.0}


@pytest.mark.parametrize("count", [-5, 10**5_000], ids=["negative", "huge"])
async def test_impossible_usage_is_a_fault_and_counts_nothing(count: int) -> None:
    """Impossible numbers of tokens are a fault of their reporter, and count as nothing."""

    def script(messages: Any) -> AIMessage:
        usage: Any = {"input_tokens": count, "output_tokens": 1, "total_tokens": 1}
        message = AIMessage("done")
        message.usage_metadata = usage
        return message

    model = fakes.ScriptedModel(script=script)
    async with watched({"a": fakes.build("langgraph", model, [])}, tracing=False) as signals:
        response = await signals.desk.ask()
        assert response.json()["usage"]["input_tokens"] == 0
        line = await signals.log.one("run_finished", run_id=response.json()["run_id"])
        assert (line["outcome"], line["tokens_in"]) == ("completed", 0)
        assert (await signals.scrape()).nonzero(ERRORS) == {("handler",): 1.0}


async def test_unreadable_model_response_is_counted() -> None:
    """A model response that we cannot read is counted, and leaves no call open."""

    def script(messages: Any) -> AIMessage:
        message = AIMessage("done")
        wrong: Any = {"input_tokens": "ten", "output_tokens": 1, "total_tokens": 1}
        message.usage_metadata = wrong
        return message

    model = fakes.ScriptedModel(script=script)
    async with watched({"a": fakes.build("langgraph", model, [])}, level="debug") as signals:
        response = await signals.desk.ask()
        assert response.json()["answer"] == "done"
        run_id = response.json()["run_id"]
        spans = await signals.trace_of(run_id)
        assert (await signals.scrape()).total(ERRORS, sink="handler") >= 1
        assert [span.name for span in spans if span.operation == "chat"] == ["chat unknown"]
        await signals.log.one("llm_call", run_id=run_id)
