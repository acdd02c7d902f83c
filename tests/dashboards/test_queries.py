"""The query language of panels refuses wrong queries, before a panel stays empty."""

from collections.abc import Callable

import pytest

from app.telemetry.catalogue import (
    AGENT,
    CONCURRENCY_LIMIT,
    IN_FLIGHT,
    ITERATION_RATIO,
    LAST_SUCCESS,
    LIMIT_HITS,
    LLM_DURATION,
    LLM_OUTCOME,
    MODEL,
    OUTCOME,
    RUN_DURATION,
    RUNS,
    TOOL,
)
from dashboards import queries
from dashboards.queries import Query

_RUNS = 'agent_runs_total{job=~"$job", instance=~"$instance", agent=~"$agent"'
_TIMES = 'agent_run_duration_seconds_bucket{job=~"$job", instance=~"$instance", agent=~"$agent"'

WRITTEN: dict[str, tuple[Query, str, str]] = {
    "pace": (
        queries.per_minute(RUNS, OUTCOME),
        f"60 * sum by (outcome) (rate({_RUNS}}}[$__rate_interval]))",
        "{{outcome}}",
    ),
    "some values": (
        queries.rate(RUNS, outcome=("failed", "timeout")),
        f'sum (rate({_RUNS}, outcome=~"failed|timeout"}}[$__rate_interval]))',
        "",
    ),
    "whole numbers": (queries.total(RUNS), f"round (sum (increase({_RUNS}}}[$__range])))", ""),
    "quantile": (
        queries.quantile(0.95, RUN_DURATION, AGENT),
        f"histogram_quantile(0.95, sum by (agent, le) (rate({_TIMES}}}[$__rate_interval])))",
        "p95 {{agent}}",
    ),
    "share": (
        queries.share(queries.level("sum", IN_FLIGHT), queries.level("sum", CONCURRENCY_LIMIT)),
        'sum (agent_runs_in_flight{job=~"$job", instance=~"$instance", agent=~"$agent"}) / '
        '(sum (agent_concurrency_limit{job=~"$job", instance=~"$instance"}) > 0)',
        "",
    ),
    "since": (
        queries.since(LAST_SUCCESS, AGENT),
        "time() - (max by (agent) (agent_last_success_timestamp_seconds{"
        'job=~"$job", instance=~"$instance", agent=~"$agent"}) > 0)',
        "{{agent}}",
    ),
}
REFUSED: dict[str, Callable[[], Query]] = {
    "the rate of a gauge": lambda: queries.rate(IN_FLIGHT),
    "the growth of a gauge": lambda: queries.total(CONCURRENCY_LIMIT),
    "a counter as it is": lambda: queries.level("sum", LIMIT_HITS),
    "a histogram as it is": lambda: queries.level("max", RUN_DURATION),
    "the quantile of a counter": lambda: queries.quantile(0.9, RUNS),
    "the spread of a counter": lambda: queries.spread(RUNS),
    "the age of a counter": lambda: queries.since(RUNS),
    "a label that it has not": lambda: queries.rate(RUNS, TOOL),
    "a label of the same name with other values": lambda: queries.rate(RUNS, LLM_OUTCOME),
    "a filter by a label that it has not": lambda: queries.rate(RUNS, tool="x"),
    "a value that the label never has": lambda: queries.rate(RUNS, outcome="error"),
    "what lies between the edges": lambda: queries.beyond(0.85, ITERATION_RATIO),
    "a share of what has more labels": lambda: queries.share(
        queries.rate(LLM_DURATION, MODEL), queries.rate(LLM_DURATION, MODEL, AGENT)
    ),
}


@pytest.mark.parametrize(("query", "expr", "legend"), WRITTEN.values(), ids=WRITTEN)
def test_query_is_the_promql_one_would_write(query: Query, expr: str, legend: str) -> None:
    """A query is the PromQL that one would write by hand, filtered by the dashboard's variables."""
    assert query.expr == expr
    assert query.name == legend


@pytest.mark.parametrize("ask", REFUSED.values(), ids=REFUSED)
def test_wrong_query_is_refused(ask: Callable[[], Query]) -> None:
    """A wrong type or label value is an error when the query is built."""
    with pytest.raises(ValueError, match=r"."):
        ask()


def test_exemplars_come_with_durations_only() -> None:
    """Exemplars come with quantiles over time, not with counts: their value is a time."""
    assert queries.quantile(0.95, RUN_DURATION).exemplars
    assert not queries.rate(RUN_DURATION).exemplars
    assert not queries.quantile(0.95, RUN_DURATION, over=queries.RANGE).exemplars
    assert not queries.quantile(0.95, ITERATION_RATIO).exemplars
