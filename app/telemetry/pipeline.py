"""The whole telemetry of a process: sinks, registry, exporter, loop monitor, in their order.

Metrics and logs come before traces, so that samples and lines can name a span that is still open.
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
from app.telemetry import catalogue, export, lines
from app.telemetry.catalogue import Metric
from app.telemetry.export import Export
from app.telemetry.fanout import Fanout
from app.telemetry.instruments import ReadAtScrape
from app.telemetry.logs import Log
from app.telemetry.metrics import Metrics
from app.telemetry.run_lines import RunLines
from app.telemetry.runtime import LoopMonitor
from app.telemetry.traces import Traces

_SAME_PART_AFTER_S = 60.0

# By metric, a function that each scrape calls. It returns values by label values.
Gauges = Mapping[Metric, Callable[[], Mapping[tuple[str, ...], float]]]


def default_registry() -> CollectorRegistry:
    """Return the default registry of prometheus_client."""
    return REGISTRY


class Pipeline:
    """Takes facts by `emit`. Call `open` once the agents are known, and `close` at the end."""

    def __init__(self, version: str, log: Log, registry: CollectorRegistry | None = None) -> None:
        self._log = log
        self.registry = registry or CollectorRegistry()
        self.metrics: Metrics | None = None
        self.export: Export | None = None
        self._logged_at: dict[str, float] = {}
        self._fanout = Fanout(self.fault)
        self._loop_monitor = LoopMonitor(self._lagged, self._blocked)
        self._renderer = ThreadPoolExecutor(1, "watchkeeper-metrics")
        if export.is_enabled():
            self.export = Export(version, self.registry, self._spans_dropped)

    @property
    def emit(self) -> Emit:
        """A function that takes a fact to every sink."""
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
        """Start the sinks. `alone` is false in a process that is not the service's."""
        traces = self._traces()
        exemplar = traces.exemplar if traces else lambda fact: None
        self.metrics = Metrics(self.registry, agents, routes, exemplar, commit, alone=alone)
        at_scrape = ReadAtScrape()
        for metric, read in (gauges or {}).items():
            at_scrape.add(metric, read)
        self.registry.register(at_scrape)
        self._fanout.add("metrics", self.metrics)
        self._fanout.add("logs", RunLines(self._log))
        if traces is not None:
            self._fanout.add("traces", traces)

    def set_global_tracer_provider(self) -> None:
        """Make our tracer provider that of the process, for spans that users create."""
        if self.export is not None:
            set_tracer_provider(self.export.provider)

    def admit(self, agent: str) -> None:
        """Add an agent that was not known at start."""
        if self.metrics is not None:
            self.metrics.admit(agent)

    def monitor_loop(self) -> None:
        """Monitor the running event loop."""
        self._loop_monitor.start()

    async def render(self, accept: str) -> tuple[bytes, str]:
        """Return the samples and their media type: text, or OpenMetrics if `accept` asks for it.

        Renders in a thread of its own: a full registry takes tens of milliseconds.
        """
        encode, media_type = choose_encoder(accept)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._renderer, encode, self.registry), media_type

    async def close(self) -> None:
        """Deliver finished spans, within a bound, and stop."""
        self._loop_monitor.stop()
        if self.export is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._renderer, self.export.close)
        self._renderer.shutdown(wait=False)

    def deliver(self) -> None:
        """Deliver finished spans and queued lines, within a bound. Blocks."""
        if self.export is not None:
            self.export.close()
        self._log.stop()

    def fault(self, sink: str) -> None:
        """Count a fault of a part of the telemetry, and log it at most once a minute."""
        self._count(catalogue.TELEMETRY_ERRORS, sink)
        self._degraded(sink)

    def _traces(self) -> Traces | None:
        if self.export is None:
            return None
        tracer = self.export.provider.get_tracer("watchkeeper")
        return Traces(tracer, captures_content=export.captures_content())

    def refused(self, reason: str) -> None:
        """Count a request that was refused before it became a run."""
        self._count(catalogue.REJECTED, reason)

    def log_dropped(self) -> None:
        """Count a log line that was lost because nobody reads the log."""
        self._count(catalogue.LOGS_DROPPED)

    def _spans_dropped(self, reason: str, count: int) -> None:
        self._count(catalogue.SPANS_DROPPED, reason, by=count)
        self._degraded(f"exporter: {reason}")

    def _degraded(self, part: str) -> None:
        """Log one line a minute for each part: a fault in every run would fill the log."""
        now = time.monotonic()
        if now - self._logged_at.get(part, -_SAME_PART_AFTER_S) >= _SAME_PART_AFTER_S:
            self._logged_at[part] = now
            self._log.log("warning", lines.TELEMETRY_DEGRADED, part=part)

    def _lagged(self, seconds: float) -> None:
        if self.metrics is not None:
            self.metrics.instruments[catalogue.LOOP_LAG].child().observe(seconds)

    def _blocked(self, seconds: float, where: str) -> None:
        self._count(catalogue.LOOP_BLOCKED)
        self._log.log("warning", lines.LOOP_BLOCKED, seconds=round(seconds, 3), where=where)

    def _count(self, metric: Metric, *labels: str, by: int = 1) -> None:
        if self.metrics is not None:
            self.metrics.instruments[metric].child(*labels).inc(by)
