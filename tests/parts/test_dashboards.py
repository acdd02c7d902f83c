"""No dead panel and no blind rule: a real Prometheus answers every query of every dashboard.

It has scraped the real service through every outcome that can be caused from outside.
"""

import asyncio
from collections.abc import Iterator

import pytest

from app.telemetry.catalogue import OUTCOME, PHASE
from dashboards import rules
from dashboards.rules.values import Values
from tests.command import serving
from tests.dashboards import shop, traffic
from tests.dashboards.fast_rules import rule_files
from tests.dashboards.promql import seen_by
from tests.dashboards.reading import Asked, dashboards, filled, queries
from tests.parts.polling import until
from tests.parts.prometheus import Prometheus, scraping

# What this test does not cause, and why. Each is tried too: a reason that no longer holds fails.
NOT_CAUSED = {
    "changes(process_start_time_seconds": "a restart would take the rest of the traffic with it",
}
ALERTS = [(alert.name, alert.expr) for alert in rules.alerts(Values.load())]
ASKED = [asked for board in dashboards().values() for asked in queries(board)]


def is_caused(asked: Asked) -> bool:
    """Whether there should be an answer."""
    return not any(part in asked.expr for part in NOT_CAUSED)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It scrapes the shop, through a request for each thing that can happen there."""
    here = tmp_path_factory.mktemp("shop")
    (here / "shop.toml").write_text(shop.SETTINGS)
    with (
        serving(here, "--config", "shop.toml", *shop.AGENTS) as service,
        scraping(service.url.removeprefix("http://"), here, rule_files(here)) as prometheus,
    ):
        prometheus.until("up == 1")
        asyncio.run(traffic.every_outcome(service.url))
        yield prometheus


@pytest.mark.parametrize("asked", [asked for asked in ASKED if is_caused(asked)], ids=str)
def test_every_query_has_a_number(prometheus: Prometheus, asked: Asked) -> None:
    """Every query returns a series, and at least one of its values is a number."""

    def is_answered() -> bool:
        found = prometheus.query(filled(asked.expr))
        return any(series["value"][1] != "NaN" for series in found)

    until(is_answered, f"no number for {asked.expr}")


@pytest.mark.parametrize("expr", [expr for _, expr in ALERTS], ids=[name for name, _ in ALERTS])
def test_every_rule_finds_its_series(prometheus: Prometheus, expr: str) -> None:
    """The series of an alert's rule exist, whether the alert fires or not."""
    for series in seen_by(expr):
        if not any(part in series for part in NOT_CAUSED):
            prometheus.until(series)


@pytest.mark.parametrize("part", NOT_CAUSED)
def test_excluded_series_are_empty(prometheus: Prometheus, part: str) -> None:
    """The series that the traffic cannot cause are empty, and some panel shows them."""
    asked = [asked for asked in ASKED if part in asked.expr]
    assert asked
    assert not any(prometheus.query(filled(one.expr)) for one in asked)


@pytest.mark.parametrize("outcome", OUTCOME.values)
def test_traffic_has_every_outcome(prometheus: Prometheus, outcome: str) -> None:
    """The traffic ends runs with every outcome."""
    prometheus.until(f'sum (agent_runs_total{{outcome="{outcome}"}}) > 0')


@pytest.mark.parametrize("phase", sorted(set(PHASE.values) - {"other"}))
def test_traffic_has_every_phase(prometheus: Prometheus, phase: str) -> None:
    """The traffic has slow runs in the queue, in a model and in a tool; nothing else is slow."""
    prometheus.until(f'sum (agent_timeouts_total{{phase="{phase}"}}) > 0')


def test_traffic_has_background_runs(prometheus: Prometheus) -> None:
    """The traffic has background runs, which end with more than one outcome."""
    prometheus.until("count (sum by (outcome) (agent_task_attempts_total) > 0) > 1")
