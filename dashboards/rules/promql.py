"""PromQL built from the catalogue: a wrong metric, label or value is a Python error.

Every aggregation keeps `job`, so that two services in one Prometheus never add up.
"""

from dataclasses import dataclass

from app.telemetry.catalogue import Kind, Label, Metric

JOB, INSTANCE = Label("job"), Label("instance")

# The metric of Prometheus itself for each target, so the catalogue does not have it.
UP = Metric("up", Kind.GAUGE, "1 where the last scrape went well.", (JOB, INSTANCE))
SCRAPED_SAMPLES = Metric(
    "scrape_samples_scraped", Kind.GAUGE, "Samples of the last scrape.", (JOB, INSTANCE)
)
SCRAPE_DURATION = Metric(
    "scrape_duration_seconds", Kind.GAUGE, "Time of the last scrape.", (JOB, INSTANCE)
)
OF_PROMETHEUS = (UP, SCRAPED_SAMPLES, SCRAPE_DURATION)


@dataclass(frozen=True, slots=True)
class Without:
    """Any value of a label but these."""

    values: tuple[str, ...]


Wanted = str | tuple[str, ...] | Without


def series(metric: Metric, part: str = "", /, **wanted: Wanted) -> str:
    """Return the series of a metric with these label values.

    Raises ValueError for a label that the metric does not have, or a value that it cannot take.
    """
    matchers = ", ".join(_matcher(metric, name, value) for name, value in wanted.items())
    return f"{metric.name}{part}" + (f"{{{matchers}}}" if matchers else "")


def increase(metric: Metric, over: str, /, *by: Label, **wanted: Wanted) -> str:
    """Return the increase of a counter, or of the count of a histogram, in the last `over`.

    `1d offset 1h` is the day that ended an hour ago.
    """
    length, _, offset = over.partition(" offset ")
    before = f" offset {offset}" if offset else ""
    return _sum(by, metric, f"increase({_counted(metric, wanted)}[{length}]{before})")


def rate(metric: Metric, over: str, /, *by: Label, **wanted: Wanted) -> str:
    """Return the rate a second of a counter, or of the count of a histogram."""
    return _sum(by, metric, f"rate({_counted(metric, wanted)}[{over}])")


def quantile(share: float, metric: Metric, over: str, /, *by: Label) -> str:
    """Return the value that this share of the observations of a histogram did not exceed."""
    if metric.kind is not Kind.HISTOGRAM:
        raise ValueError(f"{metric.name} is a {metric.kind}: only a histogram has quantiles.")
    buckets = f"rate({series(metric, '_bucket')}[{over}])"
    return f"histogram_quantile({share}, {_sum((*by, Label('le')), metric, buckets)})"


def now(how: str, metric: Metric, /, *by: Label, **wanted: Wanted) -> str:
    """Return a gauge, aggregated over all labels but `by` with `max`, `min` or `sum`."""
    if metric.kind is not Kind.GAUGE:
        raise ValueError(f"{metric.name} is a {metric.kind}: only a gauge is read as it is.")
    return _grouped(how, by, metric, series(metric, **wanted))


def share(part: str, whole: str) -> str:
    """Return one sum over another with the same labels."""
    return f"(\n  {part}\n  /\n  {whole}\n)"


def on(*labels: Label) -> str:
    """Return the labels that match two sides."""
    return f"on (job, {', '.join(label.name for label in labels)})"


def _counted(metric: Metric, wanted: dict[str, Wanted]) -> str:
    if metric.kind is Kind.GAUGE:
        raise ValueError(f"{metric.name} is a gauge: it has no rate.")
    return series(metric, "_count" if metric.kind is Kind.HISTOGRAM else "", **wanted)


def _sum(by: tuple[Label, ...], metric: Metric, what: str) -> str:
    return _grouped("sum", by, metric, what)


def _grouped(how: str, by: tuple[Label, ...], metric: Metric, what: str) -> str:
    for label in by:
        if label.name not in (*metric.label_names, "instance", "le"):
            raise ValueError(f"{metric.name} has no label {label.name}.")
    return f"{how} by ({', '.join(['job', *(label.name for label in by)])}) ({what})"


def _matcher(metric: Metric, name: str, wanted: Wanted) -> str:
    found = [label for label in (*metric.labels, JOB, INSTANCE) if label.name == name]
    if not found:
        raise ValueError(f"{metric.name} has no label {name}.")
    values = wanted.values if isinstance(wanted, Without) else wanted
    values = (values,) if isinstance(values, str) else values
    for value in values:
        if found[0].values and value not in found[0].values:
            raise ValueError(f"{name} of {metric.name} is never {value}.")
    text = "|".join(str(value) for value in values)
    if isinstance(wanted, Without):
        return f'{name}!~"{text}"'
    return f'{name}{"=" if len(values) == 1 else "=~"}"{text}"'
