"""Cases for alerts: what Prometheus is given, and what it should say, judged by promtool."""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.telemetry.catalogue import Metric
from dashboards import rules
from dashboards.rules.alert import Alert, Group, Record
from dashboards.rules.promql import OF_PROMETHEUS
from dashboards.rules.values import Values
from dashboards.rules.writing import annotations, rule_file

JOB, INSTANCE = "watchkeeper", "10.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class Given:
    """One series, in promtool's words: `0+1x30` grows by one each minute."""

    series: str
    values: str


def given(
    metric: Metric, values: str, part: str = "", /, instance: str = INSTANCE, **labels: str
) -> Given:
    """A series as the service exposes it. Raises ValueError unless every label is named."""
    own = set(labels) - {"le", "job"}
    expected = set() if metric in OF_PROMETHEUS else set(metric.label_names)
    if own != expected:
        raise ValueError(f"{metric.name} has the labels {metric.label_names}, not {own}.")
    named = {"job": JOB, "instance": instance, **labels}
    matchers = ",".join(f"{name}={json.dumps(value)}" for name, value in named.items())
    return Given(f"{metric.name}{part}{{{matchers}}}", values)


@dataclass(frozen=True, slots=True)
class FiringAlert:
    """One alert that fires: its labels beside those of the rule, and its words."""

    labels: Mapping[str, str]
    summary: str
    description: str
    rule: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Case:
    """What an alert does at a moment; without an alert that fires it is silent."""

    alert: str
    title: str
    given: Sequence[Given]
    at: str
    firing: Sequence[FiringAlert] = ()
    # The time between two values, which is that between two evaluations too.
    every: str = "1m"

    @property
    def fires(self) -> bool:
        """Whether the alert is meant to fire."""
        return bool(self.firing)


def fires(
    alert: str,
    title: str,
    *series: Given,
    at: str,
    labels: Mapping[str, str],
    summary: str,
    description: str,
    rule: Mapping[str, str] | None = None,
    every: str = "1m",
) -> Case:
    """The alert fires once, with these labels and words. `rule` picks one of several rules."""
    alert_fired = FiringAlert({"job": JOB, **labels}, summary, description, rule or {})
    return Case(alert, title, series, at, (alert_fired,), every)


def silent(alert: str, title: str, *series: Given, at: str, every: str = "1m") -> Case:
    """The alert does not fire."""
    return Case(alert, title, series, at, every=every)


def program(name: str) -> str:
    """Where a program of Debian's packages is. Raises RuntimeError when it is missing."""
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is missing: `make test` installs what it needs.")
    return found


def judge(cases: Sequence[Case], values: Values, here: Path) -> str:
    """What promtool holds against the rules made of these values; empty where all is well."""
    tried = {case.alert for case in cases}
    groups = [group for group in rules.groups(values) if _concerns(group, tried)]
    rule = here / "rules.yml"
    rule.write_text(rule_file(groups, rules.links(values)))
    test = here / "test.yml"
    test.write_text(json.dumps(_tests(cases, groups, values)))  # JSON is YAML
    ended = subprocess.run(
        [program("promtool"), "test", "rules", str(test)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


def _concerns(group: Group, alerts: set[str]) -> bool:
    """Whether a group has one of these alerts, or records what an alert asks for."""
    return any(isinstance(rule, Record) or rule.name in alerts for rule in group.rules)


def _tests(cases: Sequence[Case], groups: Sequence[Group], values: Values) -> dict[str, object]:
    return {
        "rule_files": ["rules.yml"],
        "evaluation_interval": cases[0].every,
        "tests": [
            {
                "name": case.title,
                "interval": case.every,
                "input_series": [{"series": s.series, "values": s.values} for s in case.given],
                "alert_rule_test": [
                    {
                        "eval_time": case.at,
                        "alertname": case.alert,
                        "exp_alerts": [
                            _expected(alert, case, groups, values) for alert in case.firing
                        ],
                    }
                ],
            }
            for case in cases
        ],
    }


def _expected(
    firing: FiringAlert, case: Case, groups: Sequence[Group], values: Values
) -> dict[str, Mapping[str, str]]:
    [alert] = [
        rule
        for group in groups
        for rule in group.rules
        if isinstance(rule, Alert)
        and rule.name == case.alert
        and firing.rule.items() <= rule.labels.items()
    ]
    annotated = annotations(alert, rules.links(values))
    link = annotated["dashboard_url"].partition("?")[0]
    subject = "&".join(
        f"var-{name}={firing.labels[name]}"
        for name in ("job", "agent", "instance")
        if name in firing.labels
    )
    return {
        "exp_labels": {**firing.labels, **alert.labels, "severity": str(alert.severity)},
        "exp_annotations": {
            "summary": firing.summary,
            "description": firing.description,
            "runbook_url": annotated["runbook_url"],
            "dashboard_url": f"{link}?{subject}",
        },
    }
