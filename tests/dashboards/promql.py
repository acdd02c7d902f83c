"""Reads PromQL as far as a dashboard's faults show in it: selectors, what is around them, legends.

It knows nothing of the language that the dashboards are built with, so that it may disagree.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from app.telemetry.catalogue import METRICS, Kind, Metric
from dashboards.borrowed import BORROWED

KNOWN = {metric.name: metric for metric in (*METRICS, *BORROWED)}
_PARTS = ("_bucket", "_count", "_sum")
_GROWS = ("rate", "increase", "changes", "irate", "delta")

_SELECTOR = re.compile(
    r"(?:(?P<function>\w+)\s*\()?\s*(?P<name>[a-zA-Z_:][\w:]*)\{(?P<matchers>[^}]*)\}"
    r"(?:\[(?P<window>[^\]]+)\])?"
)
_SERIES = re.compile(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}")
_NAMES = re.compile(r"\b(?:agent|http|process|python|otel|scrape)[_:][\w:]+")
_GROUPED = re.compile(r"\bby \(([^)]*)\)")


@dataclass(frozen=True)
class Selector:
    """One series selector: what it selects and what is made of it."""

    name: str
    matchers: dict[str, str]
    function: str
    window: str

    @property
    def metric(self) -> Metric | None:
        """What the catalogue knows of it."""
        return KNOWN.get(self.name) or KNOWN.get(re.sub(r"_(bucket|count|sum)$", "", self.name))

    @property
    def part(self) -> str:
        """The part of a histogram."""
        return next((part for part in _PARTS if self.name.endswith(part)), "")

    @property
    def grows(self) -> bool:
        """Whether its growth is asked, and not its value."""
        return self.function in _GROWS


def selectors(expr: str) -> Iterator[Selector]:
    """Every selector of an expression."""
    for found in _SELECTOR.finditer(expr):
        pairs = re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', found["matchers"])
        matchers = {name: sign + value for name, sign, value in pairs}
        yield Selector(found["name"], matchers, found["function"] or "", found["window"] or "")


def seen_by(expr: str) -> set[str]:
    """The series that an expression looks at, with the matchers that it gives them."""
    bare = re.sub(r'"[^"]*"', "", expr)
    found = {f"{name}{{{matchers}}}" for name, matchers in _SERIES.findall(expr)}
    return found | {name for name in re.findall(r"[\w:]+", bare) if _is_known(name)}


def _is_known(name: str) -> bool:
    return name in KNOWN or name.removesuffix("_count").removesuffix("_bucket") in KNOWN


def names(expr: str) -> set[str]:
    """What looks like the name of a metric, with a selector or without."""
    return set(_NAMES.findall(re.sub(r'"[^"]*"', "", expr)))


def grouped(expr: str) -> list[list[str]]:
    """The labels of each `by`."""
    return [re.findall(r"\w+", labels) for labels in _GROUPED.findall(expr)]


def faults(expr: str) -> Iterator[str]:
    """What is wrong with an expression, each by its name."""
    found = list(selectors(expr))
    if names(expr) - {one.name for one in found}:
        yield "no matchers"
    for one in found:
        yield from _faults_of(one)
    if "histogram_quantile(" in expr:
        inside = expr.partition("histogram_quantile(")[2]
        if not any("le" in labels for labels in grouped(inside)):
            yield "quantile without le"
        if not all(one.part == "_bucket" for one in selectors(inside)):
            yield "quantile of no buckets"
    known = {"job", "instance", "le"}.union(*(m.label_names for o in found if (m := o.metric)))
    if any(set(labels) - known for labels in grouped(expr)):
        yield "unknown label"
    if re.search(r"\bavg\b", expr) and any(
        one.metric and one.metric.kind is Kind.COUNTER for one in found
    ):
        yield "average of a counter"


def _faults_of(one: Selector) -> Iterator[str]:
    metric = one.metric
    if metric is None:
        yield "unknown metric"
        return
    if (metric.kind is Kind.HISTOGRAM) != bool(one.part):
        yield "histogram without its part"
    if metric.kind is Kind.GAUGE and one.grows and one.function != "changes":
        yield "rate of a gauge"
    if metric.kind is not Kind.GAUGE and not one.grows:
        yield "counter as it is"
    if set(one.matchers) - {"job", "instance", "le", *metric.label_names}:
        yield "unknown label"
    if one.matchers.get("job") != "=~$job":
        yield "any job"
    alone = "job" in metric.label_names and "instance" not in metric.label_names
    if one.matchers.get("instance") != "=~$instance" and not alone:
        yield "any instance"
    if "agent" in metric.label_names and one.matchers.get("agent") != "=~$agent":
        yield "any agent"
    # Between which points a rate is taken, only Grafana knows.
    if one.function == "rate" and not one.window.startswith("$__ra"):
        yield "fixed rate"
    for label in metric.labels:
        wanted = one.matchers.get(label.name, "").lstrip("=~!")
        if label.values and wanted and set(wanted.split("|")) - set(label.values):
            yield "unknown value"
