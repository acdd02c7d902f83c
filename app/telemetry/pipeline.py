"""The whole telemetry of a process: sinks, registry, exporter, watchdog, in the order they need.

Samples are taken and lines written before spans end, so that both can name their span.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from opentelemetry.trace import set_tracer_provider
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder

from app.runs.events import Emit
from app.runs.model import AgentInfo
from app.telemetry import catalogue, export, lines, logs, run_lines
from app.telemetry.catalogue import Metric
from app.telemetry.export import Export
from app.telemetry.fanout import Fanout
from app.telemetry.instruments import ReadAtScrape
from app.telemetry.metrics import Metrics
from app.telemetry.runtime import LoopWatch
from app.telemetry.traces import Traces

_QUIET_S = 60.0

# By metric, what to ask at each scrape: values by label values.
Gauges = Mapping[Metric, Callable[[], Mapping[tuple[str, ...], float]]]


def default_registry() -> CollectorRegistry:
    """The registry that a program exposes which does not say otherwise."""
    return REGISTRY


class Pipeline:
    """Give `emit` to whoever has facts. `open` when the agents are known, `close` at the end."""

    def __init__(self, version: str, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.metrics: Metrics | None = None
        self.export: Export | None = None
        self._told_of: dict[str, float] = {}
        self._fanout = Fanout(self.fault)
        self._loop_watch = LoopWatch(self._lagged, self._blocked)
        self._renderer = ThreadPoolExecutor(1, "watchkeeper-metrics")
        if export.is_wanted():
            self.export = Export(version, self.registry, self._spans_dropped)

    @property
    def emit(self) -> Emit:
        """Takes a fact to every sink."""
        return self._fanout

    def open(
        self,
        agents: Sequence[AgentInfo],
        *,
        routes: Iterable[str] = (),
        gauges: Gauges | None = None,
        commit: str = "unknown",
        alone: bool = True,
    ) -> None:
        """Start the sinks; from now on facts are told. `alone` is false in a foreign process."""
        traces = self._traces()
        exemplar = traces.exemplar if traces else lambda fact: None
        self.metrics = Metrics(self.registry, agents, routes, exemplar, commit, alone=alone)
        at_scrape = ReadAtScrape()
        for metric, read in (gauges or {}).items():
            at_scrape.add(metric, read)
        self.registry.register(at_scrape)
        self._fanout.add("metrics", self.metrics)
        self._fanout.add("logs", run_lines.write)
        if traces is not None:
            self._fanout.add("traces", traces)

    def lead(self) -> None:
        """Make ours the provider of the process, for what users instrument themselves."""
        if self.export is not None:
            set_tracer_provider(self.export.provider)

    def admit(self, agent: str) -> None:
        """Tell runs of an agent that was not known at the start."""
        if self.metrics is not None:
            self.metrics.admit(agent)

    def watch_loop(self) -> None:
        """Watch the running event loop."""
        self._loop_watch.start()

    async def render(self, accept: str) -> tuple[bytes, str]:
        """The samples and their media type: text, or OpenMetrics where it is asked for.

        In a thread of its own: a full registry takes tens of milliseconds.
        """
        encode, media_type = choose_encoder(accept)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._renderer, encode, self.registry), media_type

    async def close(self) -> None:
        """Deliver what has finished, within a bound."""
        self._loop_watch.stop()
        if self.export is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._renderer, self.export.close)
        self._renderer.shutdown(wait=False)

    def deliver(self) -> None:
        """Deliver what has finished, within a bound. Blocks."""
        if self.export is not None:
            self.export.close()
        logs.stop()

    def fault(self, sink: str) -> None:
        """A part of the telemetry failed: counted, and told now and then, breaking nothing."""
        self._count(catalogue.TELEMETRY_ERRORS, sink)
        self._degraded(sink)

    def _traces(self) -> Traces | None:
        if self.export is None:
            return None
        tracer = self.export.provider.get_tracer("watchkeeper")
        return Traces(tracer, captures_content=export.captures_content())

    def refused(self, reason: str) -> None:
        """A request was refused that had not become a run."""
        self._count(catalogue.REJECTED, reason)

    def log_dropped(self) -> None:
        """Nobody reads the log: a line was lost."""
        self._count(catalogue.LOGS_DROPPED)

    def _spans_dropped(self, reason: str, count: int) -> None:
        self._count(catalogue.SPANS_DROPPED, reason, by=count)
        self._degraded(f"exporter: {reason}")

    def _degraded(self, part: str) -> None:
        """One line a minute for each part: a fault in every run would fill the log."""
        now = time.monotonic()
        if now - self._told_of.get(part, -_QUIET_S) >= _QUIET_S:
            self._told_of[part] = now
            logs.log("warning", lines.TELEMETRY_DEGRADED, part=part)

    def _lagged(self, seconds: float) -> None:
        if self.metrics is not None:
            self.metrics.instruments[catalogue.LOOP_LAG].child().observe(seconds)

    def _blocked(self, seconds: float, where: str) -> None:
        self._count(catalogue.LOOP_BLOCKED)
        logs.log("warning", lines.LOOP_BLOCKED, seconds=round(seconds, 3), where=where)

    def _count(self, metric: Metric, *labels: str, by: int = 1) -> None:
        if self.metrics is not None:
            self.metrics.instruments[metric].child(*labels).inc(by)
