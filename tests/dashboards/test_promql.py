"""Every query of every dashboard uses existing series, as their type allows."""

import subprocess
from pathlib import Path

import pytest

from app.telemetry import catalogue
from tests.dashboards.promql import KNOWN, faults, names, seen_by, selectors
from tests.dashboards.reading import Asked, dashboards, filled, queries
from tests.parts.prometheus import binary

BOARDS = dashboards()
ASKED = [asked for board in BOARDS.values() for asked in queries(board)]
_HERE = 'job=~"$job", instance=~"$instance"'
_AGENT = f'{_HERE}, agent=~"$agent"'

# One expression for each fault, and the fault that is found in it.
PLANTED = {
    f"sum (rate(agent_run_total{{{_AGENT}}}[$__rate_interval]))": "unknown metric",
    "sum (agent_concurrency_limit)": "no matchers",
    f"sum by (agnet) (rate(agent_runs_total{{{_AGENT}}}[$__rate_interval]))": "unknown label",
    f'sum (rate(agent_runs_total{{{_AGENT}, tool="x"}}[$__rate_interval]))': "unknown label",
    f'sum (rate(agent_runs_total{{{_AGENT}, outcome="error"}}[$__rate_interval]))': "unknown value",
    f"sum (rate(agent_runs_in_flight{{{_AGENT}}}[$__rate_interval]))": "rate of a gauge",
    f"sum (agent_runs_total{{{_AGENT}}})": "counter as it is",
    f"avg (rate(agent_runs_total{{{_AGENT}}}[$__rate_interval]))": "average of a counter",
    f"sum (rate(agent_runs_total{{{_AGENT}}}[5m]))": "fixed rate",
    f"sum (rate(agent_runs_total{{{_AGENT}}}[$__rate_interval]))".replace(
        '=~"$job"', '="x"'
    ): "any job",
    'max (agent_concurrency_limit{job=~"$job"})': "any instance",
    f"sum (rate(agent_runs_total{{{_HERE}}}[$__rate_interval]))": "any agent",
    f"sum (rate(agent_run_iterations{{{_AGENT}}}[$__rate_interval]))": "histogram without its part",
    f"histogram_quantile(0.9, sum by (agent) (rate(agent_run_iterations_bucket{{{_AGENT}}}"
    "[$__rate_interval])))": "quantile without le",
    f"histogram_quantile(0.9, sum by (le) (rate(agent_run_iterations_count{{{_AGENT}}}"
    "[$__rate_interval])))": "quantile of no buckets",
}


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_every_query_is_valid(asked: Asked) -> None:
    """A query names metrics, labels and values of the catalogue and treats them by their kind."""
    assert list(faults(asked.expr)) == []
    assert list(selectors(asked.expr))


@pytest.mark.parametrize(("expr", "fault"), PLANTED.items(), ids=PLANTED.values())
def test_planted_faults_are_found(expr: str, fault: str) -> None:
    """Each planted fault is found in its query, and nothing else is."""
    assert set(faults(expr)) == {fault}


@pytest.mark.waits
def test_prometheus_can_parse_every_query(tmp_path: Path) -> None:
    """promtool reads every query, once Grafana's variables are filled in."""
    rules = "".join(f"  - {{record: 'a:b{n}', expr: {one!r}}}\n" for n, one in enumerate(_texts()))
    file = tmp_path / "queries.yml"
    file.write_text(f"groups:\n- name: queries\n  rules:\n{rules}")
    check = [binary("promtool"), "check", "rules", str(file)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(_texts())} rules found" in done.stdout


def _texts() -> list[str]:
    return sorted({filled(asked.expr) for asked in ASKED})


@pytest.mark.parametrize("uid", BOARDS)
def test_variables_use_known_metrics(uid: str) -> None:
    """The values of a variable come from a metric that has that label."""
    for variable in BOARDS[uid]["templating"]["list"]:
        if variable["type"] == "query":
            (name,) = names(variable["query"])
            labels = {"job", "instance", *KNOWN[name].label_names}
            assert variable["query"].endswith(f", {variable['name']})")
            assert variable["name"] in labels


def test_series_of_an_expression_are_found() -> None:
    """Series with matchers and without are found; functions, labels and texts are not."""
    expr = 'sum by (job) (rate(agent_runs_total{outcome="agent_ready"}[5m])) > on (job) up'
    expected = {'agent_runs_total{outcome="agent_ready"}', "agent_runs_total", "up"}
    assert seen_by(expr) == expected


def test_every_metric_is_on_a_dashboard() -> None:
    """Every metric of the catalogue is on some dashboard."""
    shown = {one.metric for asked in ASKED for one in selectors(asked.expr)}
    assert [metric.name for metric in catalogue.METRICS if metric not in shown] == []
