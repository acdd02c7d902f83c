"""Metrics on dashboards that are not the service's own: of its process, of Prometheus and of rules.

They are data like the catalogue, so that a wrong name is a Python error here too.
"""

from app.telemetry.catalogue import AGENT, Kind, Label, Metric
from dashboards.rules.alert import Severity
from dashboards.rules.promql import JOB, OF_PROMETHEUS, SCRAPE_DURATION, SCRAPED_SAMPLES, UP
from dashboards.rules.slo import BURNS, bad_share

ALERT_NAME, SEVERITY = Label("alertname"), Label("severity", tuple(Severity))
ALERT_STATE = Label("alertstate", ("pending", "firing"))

CPU = Metric("process_cpu_seconds_total", Kind.COUNTER, "CPU that the process used.")
MEMORY = Metric("process_resident_memory_bytes", Kind.GAUGE, "Memory that the process holds.")
OPEN_FILES = Metric("process_open_fds", Kind.GAUGE, "Files and connections that are open.")
MOST_FILES = Metric("process_max_fds", Kind.GAUGE, "Files and connections there may be.")
STARTED = Metric("process_start_time_seconds", Kind.GAUGE, "When the process began.")
ALERTS = Metric(
    "ALERTS", Kind.GAUGE, "Alerts that fire.", (JOB, ALERT_NAME, ALERT_STATE, SEVERITY, AGENT)
)


def bad_runs(window: str) -> Metric:
    """Return the recorded metric with the share of an agent's runs that was bad, over a window."""
    return Metric(bad_share(window), Kind.GAUGE, "The part of runs that was bad.", (JOB, AGENT))


WINDOWS = tuple(dict.fromkeys(w for burn in BURNS for w in (burn.short, burn.long)))
BORROWED = (
    *OF_PROMETHEUS,
    *(CPU, MEMORY, OPEN_FILES, MOST_FILES, STARTED, ALERTS),
    *(bad_runs(window) for window in WINDOWS),
)

__all__ = [
    "ALERTS", "ALERT_NAME", "BORROWED", "CPU", "MEMORY", "MOST_FILES",
    "OPEN_FILES", "SCRAPED_SAMPLES", "SCRAPE_DURATION", "SEVERITY", "STARTED", "UP", "WINDOWS",
    "bad_runs",
]  # fmt: skip
