"""A real service with every signal caught: its log lines, its samples, its spans as sent."""

import asyncio
import io
import json
import logging
import signal
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from app.telemetry import logs
from app.telemetry.stream import LineWriter
from tests import otlp
from tests.otlp import Received, Receiver
from tests.service import Served, served, until
from tests.waiting import came_true

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
ERRORS = ("timeout", "iteration_limit", "failed")


@dataclass
class Log:
    """What a log wrote, line by line; `source` is that log."""

    source: logs.Log = field(default_factory=logs.Log)
    stream: io.StringIO = field(default_factory=io.StringIO)

    @property
    def text(self) -> str:
        """All of it."""
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All whole lines, parsed."""
        whole = self.text.rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def of(self, event: str = "", **fields: Any) -> list[dict[str, Any]]:
        """The lines of an event that have these fields."""
        return [
            line
            for line in self.lines
            if (not event or line["event"] == event)
            and all(line.get(name) == value for name, value in fields.items())
        ]

    async def one(self, event: str, **fields: Any) -> dict[str, Any]:
        """The only such line, which may still be on its way."""
        await until(lambda: self.of(event, **fields))
        found = self.of(event, **fields)
        assert len(found) == 1, found
        return found[0]


@contextmanager
def recorded(
    level: str = "debug", on_drop: Callable[[], None] = lambda: None, *, json: bool = True
) -> Iterator[Log]:
    """Catch every line of this process; whatever logged before does so again afterwards."""
    log = Log()
    hook, show, usr1 = sys.excepthook, warnings.showwarning, signal.getsignal(signal.SIGUSR1)
    root = logging.getLogger()
    root_level, outer = root.level, [h for h in root.handlers if _writes_lines(h)]
    log.source.start(
        json=json,
        level=level,
        version="0",
        instance="here",
        stream=log.stream,
        on_drop=on_drop,
    )
    theirs = list(root.handlers)
    try:
        yield log
    finally:
        # It waits, which a loop may not.
        stopping = threading.Thread(target=log.source.stop, args=(30.0,))
        stopping.start()
        stopping.join()
        logging.captureWarnings(False)
        for handler in theirs:
            root.removeHandler(handler)
        for handler in outer:
            root.addHandler(handler)
        root.setLevel(root_level)
        sys.excepthook, warnings.showwarning = hook, show
        signal.signal(signal.SIGUSR1, usr1)


def _writes_lines(handler: logging.Handler) -> bool:
    return isinstance(getattr(handler, "stream", None), LineWriter)


@dataclass(frozen=True)
class Scrape:
    """One answer of /metrics, parsed."""

    text: str
    families: Mapping[str, Metric]
    samples: Sequence[Sample]

    def all(self, name: str, **labels: str) -> list[Sample]:
        """The samples of that name which have these labels, among others."""
        return [
            sample
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def total(self, name: str, **labels: str) -> float:
        """Their sum."""
        return sum(float(sample.value) for sample in self.all(name, **labels))

    def nonzero(self, name: str, **labels: str) -> dict[tuple[str, ...], float]:
        """The values that are not 0, by the other labels' values, in order of names."""
        return {
            tuple(v for k, v in sample.labels.items() if k not in labels): float(sample.value)
            for sample in self.all(name, **labels)
            if sample.value
        }


def parsed(body: httpx.Response | str) -> Scrape:
    """Parse an answer of /metrics, in either format."""
    text = body if isinstance(body, str) else body.text
    is_open = text.endswith("# EOF\n")
    parse = (
        openmetrics.text_string_to_metric_families if is_open else text_string_to_metric_families
    )
    families: list[Metric] = list(parse(text))
    samples = [sample for family in families for sample in family.samples]
    return Scrape(text, {family.name: family for family in families}, samples)


@dataclass
class Watched:
    """A service whose signals are caught. The log and the spans can be read after the block."""

    desk: Served
    log: Log
    collector: Receiver

    async def scrape(self, accept: str = "") -> Scrape:
        """Ask for /metrics once."""
        response = await self.desk.client.get("/metrics", headers={"accept": accept})
        assert response.status_code == 200, response.text
        return parsed(response)

    async def until(self, condition: Callable[[Scrape], bool], timeout_s: float = 30.0) -> Scrape:
        """Scrape until the claim is true of the samples; gives them."""
        deadline = time.monotonic() + timeout_s
        while not condition(samples := await self.scrape()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        return samples

    async def counted(self, name: str, at_least: float = 1, **labels: str) -> Scrape:
        """The samples, once those of a metric with these labels add up to so much."""
        return await self.until(lambda samples: samples.total(name, **labels) >= at_least)

    async def without(self, name: str, **labels: str) -> Scrape:
        """The samples, once those of a gauge with these labels are 0."""
        return await self.until(lambda samples: samples.total(name, **labels) == 0)

    async def logged(self, event: str = "", count: int = 1, **fields: Any) -> list[Any]:
        """The log's lines of an event with these fields, once there are so many."""
        await came_true(
            lambda: len(self.log.of(event, **fields)) >= count, f"{count} lines {event} {fields}"
        )
        return self.log.of(event, **fields)

    async def delivered(self, count: int = 1, name: str | None = None) -> list[Received]:
        """The collector's spans, of one name or of all, once there are so many."""

        def spans() -> list[Received]:
            return [s for s in self.collector.spans if name in (None, s.name)]

        await came_true(lambda: len(spans()) >= count, f"{count} spans {name or ''}")
        return spans()

    async def flush(self) -> None:
        """Deliver every span that has ended."""
        export = self.desk.pipeline.export
        assert export is not None
        await asyncio.get_running_loop().run_in_executor(None, export.provider.force_flush)

    async def trace_of(self, run_id: str) -> list[Received]:
        """The whole trace of a run; waits for the run's span and the one around it.

        Either may be the last to end: a request whose caller left is over before its run.
        """

        def has_come() -> bool:
            spans = self.collector.trace_of(run_id)  # a caller may ask for more in one trace
            return any(is_root(span, run_id) and parent_of(span, spans) for span in spans)

        await until(has_come)
        return self.collector.trace_of(run_id)

    async def held(self, agent: str, phase: str, calls: int = 0) -> str:
        """The id of an agent's run, once this holds it and so many of its tool calls are open."""
        return (await self.desk.held(agent, phase, calls)).id


@asynccontextmanager
async def watched(
    agents: dict[str, Any],
    /,
    *,
    level: str = "debug",
    collector: Receiver | None = None,
    tracing: bool = True,
    variables: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[Watched]:
    """Serve with tracing into a receiver and the log caught; `variables` are of the environment."""
    with ExitStack() as stack:
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        collector = collector or stack.enter_context(otlp.receiver())
        environ = {"OTEL_BSP_SCHEDULE_DELAY": "50", **(variables or {})}
        if tracing:
            environ.setdefault("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.url)
        for name, value in environ.items():
            environment.setenv(name, value)
        log = stack.enter_context(recorded(level))
        async with served(agents, log=log.source, **options) as desk:
            yield Watched(desk, log, collector)


def parent_of(span: Received, spans: Sequence[Received]) -> Received | None:
    """The span that it names as its parent."""
    return next((other for other in spans if other.span_id == span.parent_id), None)


def root_of(spans: Sequence[Received], run_id: str) -> Received:
    """The one invoke_agent span of a run."""
    own = [span for span in spans if is_root(span, run_id)]
    assert len(own) == 1, own
    return own[0]


def is_root(span: Received, run_id: str) -> bool:
    """Whether it is the invoke_agent span of the run; those of its tools are INTERNAL as well."""
    return span.kind == "INTERNAL" and span.attributes.get("agent.run.id") == run_id
