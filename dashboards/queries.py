"""What a panel asks: PromQL built from the catalogue and held to what the reader has chosen.

Every series is limited to the chosen jobs, instances and agents. Counters and histograms are only
ever rated, gauges only ever read, and quantiles keep `le`: anything else is a Python error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from app.telemetry.catalogue import AGENT, Kind, Label, Metric
from dashboards.rules.promql import INSTANCE, JOB, Wanted, Without, series

RATE = "$__rate_interval"
RANGE = "$__range"
LE = Label("le")
_MINUTE_S, _HOUR_S = 60, 3600


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, the labels that its series have, and what it is called in the legend.

    `held` are the labels that were asked for by value; traces and log lines are found by them.
    """

    expr: str
    by: tuple[Label, ...]
    metrics: tuple[Metric, ...]
    legend: str = ""
    exemplars: bool = False
    instant: bool = False
    heat: bool = False
    held: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def name(self) -> str:
        """The legend; unless one is given, the values of the labels."""
        return self.legend or " ".join(f"{{{{{label.name}}}}}" for label in self.by)

    def named(self, legend: str) -> "Query":
        """The same, with these words in the legend (`{{label}}` stands for a value)."""
        return replace(self, legend=legend)

    def put_into(self, around: str) -> "Query":
        """The same with arithmetic around it, where `{}` stands for what it was."""
        return replace(self, expr=around.format(self.expr), exemplars=False)


def rate(metric: Metric, *by: Label, **wanted: Wanted) -> Query:
    """How often it happens, each second."""
    text = f"rate({_counted(metric, wanted)}[{RATE}])"
    return _aggregated("sum", metric, by, text, wanted)


def per_minute(metric: Metric, *by: Label, **wanted: Wanted) -> Query:
    """How often it happens, each minute: the pace at which people think of agents."""
    return rate(metric, *by, **wanted).put_into(f"{_MINUTE_S} * {{}}")


def per_hour(metric: Metric, *by: Label, **wanted: Wanted) -> Query:
    """How much it is each hour."""
    return rate(metric, *by, **wanted).put_into(f"{_HOUR_S} * {{}}")


def total(metric: Metric, *by: Label, over: str = RANGE, **wanted: Wanted) -> Query:
    """How often it happened in the time that is shown, or in the last `over`: a whole number."""
    return growth(metric, *by, over=over, **wanted).put_into("round ({})")


def growth(metric: Metric, *by: Label, over: str = RANGE, **wanted: Wanted) -> Query:
    """How much a counter grew in that time: what shares are made of, and costs."""
    text = f"increase({_counted(metric, wanted)}[{over}])"
    return replace(_aggregated("sum", metric, by, text, wanted), instant=True)


def quantile(part: float, metric: Metric, *by: Label, over: str = RATE, **wanted: Wanted) -> Query:
    """The value that this part of the observations did not exceed."""
    _only(metric, Kind.HISTOGRAM)
    rates = f"rate({_scoped(metric, '_bucket', **wanted)}[{over}])"
    counted = _aggregated("sum", metric, (*by, LE), rates)
    names = " ".join(f"{{{{{label.name}}}}}" for label in by)
    return Query(
        f"histogram_quantile({part:g}, {counted.expr})",
        by,
        (metric,),
        held=_held(wanted),
        legend=f"p{part * 100:g} {names}".strip(),
        exemplars=metric.exemplar and over == RATE,
        instant=over == RANGE,
    )


def beyond(edge: float, metric: Metric, *by: Label) -> Query:
    """The part of the observations above an edge of the buckets, in the time that is shown.

    Raises ValueError for what is no edge.
    """
    _only(metric, Kind.HISTOGRAM)
    if edge not in metric.buckets:
        raise ValueError(f"{edge} is no edge of {metric.name}.")
    below = _scoped(metric, "_bucket", f'le="{float(edge)}"')
    within = f"increase({below}[{RANGE}])"
    part = replace(_aggregated("sum", metric, by, within), instant=True)
    return share(part, growth(metric, *by)).put_into("1 - {}")


def spread(metric: Metric) -> Query:
    """How many observations fell between two edges: the rows of a heatmap."""
    _only(metric, Kind.HISTOGRAM)
    text = f"increase({_scoped(metric, '_bucket')}[{RATE}])"
    found = _aggregated("sum", metric, (LE,), text)
    return replace(found, heat=True, exemplars=metric.exemplar)


def level(how: str, metric: Metric, *by: Label, **wanted: Wanted) -> Query:
    """A gauge as it is, over everything but `by`, taken together by `max`, `min` or `sum`."""
    _only(metric, Kind.GAUGE)
    return _aggregated(how, metric, by, _scoped(metric, **wanted), wanted)


def since(metric: Metric, *by: Label) -> Query:
    """The time since a moment that a gauge holds; nothing where it never was."""
    return level("max", metric, *by).put_into("time() - ({} > 0)")


def share(part: Query, whole: Query) -> Query:
    """One over the other, where there is another. `whole` may have fewer labels than `part`."""
    if not set(whole.by) <= set(part.by):
        raise ValueError(f"{whole.expr} has labels that {part.expr} has not.")
    matched = ", ".join(label.name for label in whole.by)
    meet = "" if whole.by == part.by else f" on ({matched}) group_left ()"
    expr = f"{part.expr} /{meet} ({whole.expr} > 0)"
    return replace(part, expr=expr, metrics=(*part.metrics, *whole.metrics), exemplars=False)


def scope(metric: Metric) -> str:
    """The matchers of what the reader has chosen.

    Labels of a scrape are not in the catalogue; a metric that names `job` itself names all it has.
    """
    has = metric.labels if JOB in metric.labels else (JOB, INSTANCE, *metric.labels)
    chosen = (label.name for label in (JOB, INSTANCE, AGENT) if label in has)
    return ", ".join(f'{name}=~"${name}"' for name in chosen)


def _scoped(metric: Metric, part: str = "", also: str = "", /, **wanted: Wanted) -> str:
    name, _, given = series(metric, part, **wanted).partition("{")
    matchers = (scope(metric), also, given.removesuffix("}"))
    return f"{name}{{{', '.join(filter(None, matchers))}}}"


def _counted(metric: Metric, wanted: dict[str, Wanted]) -> str:
    if metric.kind is Kind.GAUGE:
        raise ValueError(f"{metric.name} is a gauge: it has no rate.")
    return _scoped(metric, "_count" if metric.kind is Kind.HISTOGRAM else "", **wanted)


def _aggregated(
    how: str,
    metric: Metric,
    by: tuple[Label, ...],
    text: str,
    wanted: Mapping[str, Wanted] | None = None,
) -> Query:
    for label in by:
        if label not in (*metric.labels, JOB, INSTANCE, LE):
            raise ValueError(f"{metric.name} has no label {label.name} of these values.")
    grouped = f" by ({', '.join(label.name for label in by)})" if by else ""
    return Query(f"{how}{grouped} ({text})", by, (metric,), held=_held(wanted or {}))


def _held(wanted: Mapping[str, Wanted]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    several = {n: (v,) if isinstance(v, str) else v for n, v in wanted.items()}
    return tuple((n, v) for n, v in several.items() if not isinstance(v, Without))


def _only(metric: Metric, kind: Kind) -> None:
    if metric.kind is not kind:
        raise ValueError(f"{metric.name} is a {metric.kind}, not a {kind}.")
