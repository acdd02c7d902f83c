"""Every alert fires when it should, is silent when it should, and has the right text."""

import json
import re
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from app.telemetry import catalogue
from dashboards import rules
from dashboards.rules import promql, slo
from dashboards.rules.alert import Alert, Record, Severity
from dashboards.rules.values import FILE, Values, scaled
from tests.alerts.cases import background, models, runs, service, telemetry, tools
from tests.alerts.cases import slo as slo_cases
from tests.alerts.promtool import Case, judge, program
from tests.command import ROOT

CASES: list[Case] = [
    case
    for module in (background, models, runs, service, slo_cases, telemetry, tools)
    for case in module.CASES
]
ALERTS = rules.alerts(Values.load())
NAMES = sorted({alert.name for alert in ALERTS})
GENERATED = ROOT / "dashboards" / "generated"
# It always fires: that is what it is for.
NEVER_SILENT = {"AgentWatchdog"}


def of(alert: str) -> list[Case]:
    """The cases of one alert."""
    return [case for case in CASES if case.alert == alert]


@pytest.mark.waits
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.title}")
def test_case(case: Case, tmp_path: Path) -> None:
    """The alert does what the case expects, with its labels and its text."""
    found = judge([case], Values.load(), tmp_path)
    assert not found, found


@pytest.mark.parametrize("alert", NAMES)
def test_every_alert_has_both_cases(alert: str) -> None:
    """Each alert has a case in which it fires and one in which it is silent."""
    wanted = {True} if alert in NEVER_SILENT else {True, False}
    assert {case.fires for case in of(alert)} == wanted


def knobs() -> list[Any]:
    """Every threshold that can be turned, and both ways to turn it too far."""
    tables = tomllib.loads(FILE.read_text())
    return [
        pytest.param(table, knob, turned, id=f"{table}.{knob}={turned:g}")
        for table, held in tables.items()
        if table in NAMES
        for knob, value in held.items()
        if isinstance(value, int | float)
        for turned in (value - 1 if value < 1 else value / 1000, (value or 1) * 1000)
    ]


def turned(table: str, knob: str, value: object) -> Values:
    """The values with one of them changed."""
    tables: dict[str, dict[str, object]] = tomllib.loads(FILE.read_text())
    return Values({**tables, table: {**tables[table], knob: value}})


@pytest.mark.waits
@pytest.mark.parametrize(("table", "knob", "value"), knobs())
def test_wrong_thresholds_are_detected(table: str, knob: str, value: float, tmp_path: Path) -> None:
    """A case of its alert detects a threshold that is far too low or far too high."""
    assert judge(of(table), turned(table, knob, value), tmp_path) != ""


@pytest.mark.waits
@pytest.mark.parametrize("alert", sorted(set(NAMES) - {"AgentErrorBudgetBurn"}))
def test_alert_waits_for_its_duration(alert: str, tmp_path: Path) -> None:
    """An alert with a far longer duration does not fire in its case."""
    assert judge(of(alert), turned(alert, "for", "30d"), tmp_path) != ""


@pytest.mark.waits
@pytest.mark.parametrize(("objective", "fires"), [(0.5, True), (0.9999, False)])
def test_wrong_objectives_are_detected(objective: float, fires: bool, tmp_path: Path) -> None:
    """A case of the error budget detects another objective."""
    values = turned("slo.runs", "objective", objective)
    case = next(case for case in of("AgentErrorBudgetBurn") if case.fires is fires)
    assert judge([case], values, tmp_path) != ""


@pytest.mark.waits
def test_promtool_accepts_the_rules() -> None:
    """The generated rules pass promtool's every check."""
    files = sorted(map(str, (GENERATED / "prometheus").glob("*.yml")))
    command = [program("promtool"), "check", "rules", "--lint=all", "--lint-fatal", *files]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(files) == 2


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_alert_is_complete(alert: Alert) -> None:
    """An alert has its prefix, a severity, texts with its value, a runbook and a dashboard."""
    assert re.fullmatch(r"Agent[A-Z]\w+", alert.name)
    assert alert.severity in Severity
    assert alert.summary
    says_value = {
        "AgentServiceDown",
        "AgentServiceAbsent",
        "AgentWatchdog",
        "AgentStoreUnusable",
    }
    assert "$value" in alert.description or alert.name in says_value
    links = rules.links(Values.load())
    assert links.runbook(alert.name).endswith(f"/{alert.name}.md")
    assert links.dashboard(alert.board).startswith("https://")


def test_rules_name_only_metrics_of_the_catalogue() -> None:
    """Every metric in a rule is in the catalogue, or recorded by a rule."""
    metrics = [*catalogue.METRICS, *promql.OF_PROMETHEUS]
    known = {m.name + part for m in metrics for part in ("", "_bucket", "_count", "_sum")}
    known |= {rule.name for group in rules.groups(Values.load()) for rule in group.rules}
    for group in rules.groups(Values.load()):
        for rule in group.rules:
            bare = re.sub(r'"[^"]*"|\[[^]]*\]|\b(?:by|on) \([^)]*\)|\{[^}]*\}', "", rule.expr)
            named = set(re.findall(r"[a-z][a-z0-9_:]*[_:][a-z0-9_:]+", bare))
            assert named - {"histogram_quantile"} <= known, rule.name


def test_every_recorded_series_is_used() -> None:
    """Every recorded share is in the expression of an alert."""
    groups = rules.groups(Values.load())
    recorded = {r.name for g in groups for r in g.rules if isinstance(r, Record)}
    expressions = " ".join(alert.expr for alert in ALERTS)
    assert {name for name in recorded if name not in expressions} == set()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda c: promql.series(c.RUNS, agnet="orders"),
        lambda c: promql.series(c.RUNS, outcome="success"),
        lambda c: promql.increase(c.IN_FLIGHT, "5m"),
        lambda c: promql.now("max", c.RUNS),
        lambda c: promql.quantile(0.95, c.RUNS, "5m"),
        lambda c: promql.increase(c.RUNS, "5m", c.TOOL),
    ],
    ids=["label", "value", "rate of a gauge", "a counter as it is", "quantile", "by"],
)
def test_wrong_query_cannot_be_built(wrong: Any) -> None:
    """A label, value or kind that does not fit its metric is an error, not a silent alert."""
    with pytest.raises(ValueError, match="agent_"):
        wrong(catalogue)


def tables() -> dict[str, dict[str, object]]:
    """The values as they stand."""
    return tomllib.loads(FILE.read_text())


def test_every_value_is_used() -> None:
    """Some rule uses each value."""
    values = Values.load()
    rules.files(values)
    assert values.unused() == []


def test_missing_value_is_named() -> None:
    """A missing threshold stops the build with its name."""
    without: Mapping[str, Any] = {**tables(), "AgentRunTimeouts": {"window": "15m"}}
    with pytest.raises(KeyError, match="no runs in"):
        rules.files(Values(without))


@pytest.mark.parametrize("duration", ["5", "5 m", "m", "", "-5m"])
def test_wrong_duration_is_named(duration: str) -> None:
    """An invalid duration stops the build."""
    with pytest.raises(ValueError, match="no duration"):
        rules.files(turned("AgentRunTimeouts", "window", duration))


@pytest.mark.parametrize("objective", [0, 1, 99])
def test_impossible_objective_is_refused(objective: float) -> None:
    """An objective has to be a share below one."""
    with pytest.raises(ValueError, match="objective"):
        rules.files(turned("slo.runs", "objective", objective))


@pytest.mark.parametrize(
    ("duration", "speed", "expected"),
    [("5m", 1, "5m"), ("5m", 60, "5s"), ("15s", 60, "250ms"), ("1d", 60, "24m"), ("0s", 60, "0s")],
)
def test_durations_are_scaled(duration: str, speed: float, expected: str) -> None:
    """The drills run the same rules in a shorter time."""
    assert scaled(duration, speed) == expected


def test_budget_is_one_minus_the_objective() -> None:
    """One run in a hundred may be bad when ninety-nine are promised."""
    promise = slo.objective(Values.load())
    assert (promise.objective, promise.budget, promise.window) == (0.99, 0.01, "30d")


def test_annotations_are_valid_yaml() -> None:
    """The written YAML has the intended text, quotes included."""
    text = rules.files()["prometheus/alerts.yml"]
    summaries = re.findall(r"^ +summary: (.*)$", text, re.M)
    assert [json.loads(summary) for summary in summaries] == [
        alert.summary for alert in ALERTS if alert.name != "AgentErrorBudgetBurn"
    ]
