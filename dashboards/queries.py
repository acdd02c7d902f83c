"""The queries of panels: PromQL built from the catalogue, limited to the reader's choice.

Every series is limited to the chosen jobs, instances and agents. A counter or histogram without a
rate, a rate of a gauge, and a quantile without `le` are Python errors.
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
    """One expression, the labels of its series, and its name in the legend.

    `held` are the labels that the query selects by value. Links to traces and log lines use them.
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
        """The legend. By default it is the values of the labels."""
        return self.legend or " ".join(f"{{{{{label.name}}}}}" for label in self.by)

    def named(self, legend: str) -> "Query":
        """Return the same query with this legend (`{{label}}` stands for a value)."""
        return replace(self, legend=legend)

    def put_into(self, around: str) -> "Query":
        """Return the same query with arithmetic around it. `{}` is the former expression."""
        return replace(self, expr=around.format(self.expr), exemplars=False)


def rate(metric: Metric, *by: Label, **wanted: Wanted) -> Query:
    """Return the events a second."""
    text = f"rate({_counted(metric, wanted)}[{RATE}])"
    return _aggregated("sum", metric, by, text, wanted)


def per_minute(metric: Metric, *by: Label, **wanted: Wanted) -> Query:
    """Return the events a minute, the usual unit for agents."""
    return rate(metric, *by, **wanted).put_into(f"{_MINUTE_S} * {{}}")


def per_hour(metric: Metric, *by: Label, **wanted: Wanted) -> Query:
    """Return the increase an hour."""
    return rate(metric, *by, **wanted).put_into(f"{_HOUR_S} * {{}}")


def total(metric: Metric, *by: Label, over: str = RANGE, **wanted: Wanted) -> Query:
    """Return the events in the shown time, or in the last `over`, as a whole number."""
    return growth(metric, *by, over=over, **wanted).put_into("round ({})")


def growth(metric: Metric, *by: Label, over: str = RANGE, **wanted: Wanted) -> Query:
    """Return the increase of a counter in that time, for shares and costs."""
    text = f"increase({_counted(metric, wanted)}[{over}])"
    return replace(_aggregated("sum", metric, by, text, wanted), instant=True)


def quantile(part: float, metric: Metric, *by: Label, over: str = RATE, **wanted: Wanted) -> Query:
    """Return the value that this share of the observations did not exceed."""
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
    """Return the share of the observations above an edge of the buckets, in the shown time.

    Raises ValueError if the metric has no such edge.
    """
    _only(metric, Kind.HISTOGRAM)
    if edge not in metric.buckets:
        raise ValueError(f"{edge} is no edge of {metric.name}.")
    below = _scoped(metric, "_bucket", f'le="{float(edge)}"')
    within = f"increase({below}[{RANGE}])"
    part = replace(_aggregated("sum", metric, by, within), instant=True)
    return share(part, growth(metric, *by)).put_into("1 - {}")


def spread(metric: Metric) -> Query:
    """Return the observations between each two edges: the rows of a heatmap."""
    _only(metric, Kind.HISTOGRAM)
    text = f"increase({_scoped(metric, '_bucket')}[{RATE}])"
    found = _aggregated("sum", metric, (LE,), text)
    return replace(found, heat=True, exemplars=metric.exemplar)


def level(how: str, metric: Metric, *by: Label, **wanted: Wanted) -> Query:
    """Return a gauge, aggregated over all labels but `by` with `max`, `min` or `sum`."""
    _only(metric, Kind.GAUGE)
    return _aggregated(how, metric, by, _scoped(metric, **wanted), wanted)


def since(metric: Metric, *by: Label) -> Query:
    """Return the time since the moment in a gauge, without series that are 0."""
    return level("max", metric, *by).put_into("time() - ({} > 0)")


def share(part: Query, whole: Query) -> Query:
    """Return one query over the other, if both have series. `whole` may have fewer labels."""
    if not set(whole.by) <= set(part.by):
        raise ValueError(f"{whole.expr} has labels that {part.expr} has not.")
    matched = ", ".join(label.name for label in whole.by)
    meet = "" if whole.by == part.by else f" on ({matched}) group_left ()"
    expr = f"{part.expr} /{meet} ({whole.expr} > 0)"
    return replace(part, expr=expr, metrics=(*part.metrics, *whole.metrics), exemplars=False)


def scope(metric: Metric) -> str:
    """Return the matchers of the reader's choice.

    The catalogue has no labels of scrapes. A metric that has `job` in its labels lists all of them.
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
