"""Alert rules, recording rules and Alertmanager's configuration, built from the catalogue."""

from collections.abc import Mapping

from dashboards.rules import alertmanager, background, models, runs, service, slo, telemetry, tools
from dashboards.rules.alert import Alert, Group, Links
from dashboards.rules.values import Values
from dashboards.rules.writing import rule_file

_GROUPS = {
    "agent-service": service.ALERTS,
    "agent-runs": runs.ALERTS,
    "agent-models": models.ALERTS,
    "agent-tools": tools.ALERTS,
    "agent-background": background.ALERTS,
    "agent-telemetry": telemetry.ALERTS,
}


def groups(values: Values) -> tuple[Group, ...]:
    """Return every rule."""
    made = [
        Group(name, tuple(build(values[alert]) for alert, build in alerts.items()))
        for name, alerts in _GROUPS.items()
    ]
    return (slo.group(values), *made)


def alerts(values: Values) -> list[Alert]:
    """Return every alert. Those on the error budget share one name."""
    return [rule for group in groups(values) for rule in group.rules if isinstance(rule, Alert)]


def links(values: Values) -> Links:
    """Return the addresses of runbooks and dashboards."""
    where = values["links"]
    return Links(where.text("runbooks"), where.text("dashboards"))


def files(values: Values | None = None) -> Mapping[str, str]:
    """Return the text of every generated file, by its path below dashboards/generated."""
    values = values or Values.load()
    promise, *others = groups(values)
    return {
        "prometheus/slo.yml": rule_file([promise], links(values)),
        "prometheus/alerts.yml": rule_file(others, links(values)),
        "alertmanager/alertmanager.yml": alertmanager.configuration(values),
    }
