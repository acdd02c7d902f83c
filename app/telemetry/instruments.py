"""Builds Prometheus instruments from the catalogue, and guards their labels.

The children are cached by label values, since the lookup is most of the cost of an increment. Each
label has a bound on unknown values. A value beyond that bound becomes `_other`.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.telemetry.catalogue import LABEL_OVERFLOW, OTHER, Kind, Label, Metric

_MOST_ADMITTED = 50

_CLASSES: Mapping[Kind, type[Any]] = {
    Kind.COUNTER: Counter,
    Kind.GAUGE: Gauge,
    Kind.HISTOGRAM: Histogram,
}


class Labels:
    """The values that each label may take: the configured ones, and some more at first sight."""

    def __init__(
        self, configured: Mapping[Label, Iterable[str]], on_overflow: Callable[[str], None]
    ) -> None:
        self._known = {label: set(values) for label, values in configured.items()}
        self._on_overflow = on_overflow

    def known(self, label: Label) -> Iterable[str]:
        """Return the values that are known at start."""
        return label.values or sorted(self._known.get(label, ()))

    def admit(self, label: Label, value: str) -> None:
        """Add a known value, up to a bound."""
        known = self._known.setdefault(label, set(label.values))
        if len(known) < _MOST_ADMITTED:
            known.add(value)

    def guard(self, label: Label, value: str) -> str:
        """Return the value, or `_other` for an unknown value beyond the bound."""
        known = self._known.setdefault(label, set(label.values))
        if value in known or value == OTHER:
            return value
        if label.room and len(known) < label.room:
            known.add(value)
            return value
        self._on_overflow(label.name)
        return OTHER


class Instrument:
    """One metric, with its children cached by label values."""

    def __init__(
        self, metric: Metric, registry: CollectorRegistry, labels: Labels, edges: Iterable[float]
    ) -> None:
        self.metric = metric
        self._labels = labels
        self._children: dict[tuple[str, ...], Any] = {}
        options: dict[str, Any] = {}
        if metric.kind is Kind.HISTOGRAM:
            options["buckets"] = sorted({*metric.buckets, *edges})
        self._parent = _CLASSES[metric.kind](
            metric.name, metric.help, metric.label_names, registry=registry, **options
        )

    def child(self, *values: str) -> Any:
        """Return the time series of these label values, in the order of the catalogue."""
        found = self._children.get(values)
        return found if found is not None else self._new(values)

    def _new(self, values: tuple[str, ...]) -> Any:
        named = zip(self.metric.labels, values, strict=True)
        guarded = tuple(self._labels.guard(label, value) for label, value in named)
        child = self._parent.labels(*guarded) if guarded else self._parent
        if guarded == values:  # an overflow is not cached, so that each one is counted
            self._children[values] = child
        return child


class Instruments:
    """Every metric of the catalogue on one registry."""

    def __init__(
        self,
        metrics: Sequence[Metric],
        registry: CollectorRegistry,
        edges: Mapping[str, Iterable[float]],
        configured: Mapping[Label, Iterable[str]],
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.labels = Labels(configured, lambda label: self[LABEL_OVERFLOW].child(label).inc())
        self._by_name = {
            metric.name: Instrument(metric, registry, self.labels, edges.get(metric.edge or "", ()))
            for metric in metrics
        }

    def __getitem__(self, metric: Metric) -> Instrument:
        return self._by_name[metric.name]

    def start_at_zero(self) -> None:
        """Create every child of the counters whose label values are all known.

        If a counter first appears at 1, no rate shows that increase.
        """
        for instrument in self._by_name.values():
            metric = instrument.metric
            if metric.kind is Kind.COUNTER and not any(label.room for label in metric.labels):
                for values in product(*map(self.labels.known, metric.labels)):
                    instrument.child(*values)


class ReadAtScrape(Collector):
    """Gauges whose values are read at each scrape."""

    Reader = Callable[[], Mapping[tuple[str, ...], float]]

    def __init__(self) -> None:
        self._readers: dict[str, tuple[Metric, ReadAtScrape.Reader]] = {}
        self._lock = threading.Lock()

    def add(self, metric: Metric, read: Reader) -> None:
        """Read this gauge with `read`, which returns values by label values."""
        with self._lock:
            self._readers[metric.name] = (metric, read)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read every gauge. The registry calls this in the thread that renders."""
        with self._lock:
            readers = list(self._readers.values())
        for metric, read in readers:
            family = GaugeMetricFamily(metric.name, metric.help, labels=metric.label_names)
            for values, value in read().items():
                family.add_metric(values, value)
            yield family
