"""Alerts on the service as a process: down, full, blocked, or with too many series."""

from app.telemetry.catalogue import (
    BUILD_INFO,
    CONCURRENCY_LIMIT,
    IN_FLIGHT,
    LOOP_BLOCKED,
    REJECTED,
    SERIES_BUDGET,
)
from dashboards.rules.alert import Alert, Board, Severity
from dashboards.rules.promql import (
    INSTANCE,
    SCRAPE_DURATION,
    SCRAPED_SAMPLES,
    UP,
    Without,
    increase,
    now,
    on,
    series,
)
from dashboards.rules.values import Knobs


def service_down(knobs: Knobs) -> Alert:
    """One instance does not answer Prometheus."""
    return Alert(
        name=knobs.name,
        expr=f"{series(UP, job=knobs.job)} == 0",
        lasts=knobs.span("for"),
        severity=Severity.CRITICAL,
        board=Board.OVERVIEW,
        summary="{{ $labels.instance }} is down",
        description=(
            "{{ $labels.instance }} of {{ $labels.job }} has not answered a scrape for "
            f"{knobs.span('for')}."
        ),
    )


def service_absent(knobs: Knobs) -> Alert:
    """No instance reports its build: all are down, or none is scraped."""
    return Alert(
        name=knobs.name,
        expr=f"absent({series(BUILD_INFO, job=knobs.job)})",
        lasts=knobs.span("for"),
        severity=Severity.CRITICAL,
        board=Board.OVERVIEW,
        summary="No instance of {{ $labels.job }} reports",
        description=(
            "Prometheus has had no sample of any instance of {{ $labels.job }} for "
            f"{knobs.span('for')}: all are down, or none is scraped."
        ),
    )


def watchdog(knobs: Knobs) -> Alert:
    """Always fires. If it is missing, alerting itself is broken."""
    return Alert(
        name=knobs.name,
        expr="vector(1)",
        lasts=knobs.span("for"),
        severity=Severity.NONE,
        board=Board.OVERVIEW,
        summary="Alerting works",
        description=(
            "This alert always fires. If its receiver does not get it, Prometheus, Alertmanager or "
            "the way between them is broken."
        ),
    )


def saturated(knobs: Knobs) -> Alert:
    """Nearly every slot is in use: the next peak is queued or refused."""
    # Background runs have slots of their own.
    running = now("sum", IN_FLIGHT, INSTANCE, state="running", mode=Without(("background",)))
    limit = now("max", CONCURRENCY_LIMIT, INSTANCE)
    return Alert(
        name=knobs.name,
        expr=f"{running}\n> {on(INSTANCE)}\n({knobs.number('share'):g} * {limit})",
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.OVERVIEW,
        summary="{{ $labels.instance }} is full",
        description=(
            "{{ $value }} runs are running on {{ $labels.instance }}: nearly every slot is in use."
        ),
    )


def requests_shed(knobs: Knobs) -> Alert:
    """The service refuses callers because it is full."""
    window = knobs.span("window")
    shed = increase(REJECTED, window, INSTANCE, reason="overloaded")
    return Alert(
        name=knobs.name,
        expr=f"{shed} >= {knobs.number('requests'):g}",
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.API,
        summary="{{ $labels.instance }} refuses requests",
        description=(
            '{{ $value | printf "%.0f" }} requests were refused as overloaded by '
            f"{{{{ $labels.instance }}}} in the last {window}."
        ),
    )


def event_loop_blocked(knobs: Knobs) -> Alert:
    """Code blocks the event loop, so that every run and every health check waits."""
    window = knobs.span("window")
    return Alert(
        name=knobs.name,
        expr=f"{increase(LOOP_BLOCKED, window, INSTANCE)} >= {knobs.number('times'):g}",
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.RUNTIME,
        summary="Something blocks the event loop of {{ $labels.instance }}",
        description=(
            '{{ $value | printf "%.0f" }} times in the last '
            f"{window} something held the event loop of {{{{ $labels.instance }}}} for more than "
            "half a second; none of its runs could continue."
        ),
    )


def scrape_too_heavy(knobs: Knobs) -> Alert:
    """A scrape has more series, or takes longer, than it should."""
    job = knobs.job
    samples, slow = series(SCRAPED_SAMPLES, job=job), series(SCRAPE_DURATION, job=job)
    return Alert(
        name=knobs.name,
        expr=f"{samples} > {SERIES_BUDGET}\nor\n{slow} > {knobs.number('seconds'):g}",
        lasts=knobs.span("for"),
        severity=Severity.INFO,
        board=Board.RUNTIME,
        summary="Scraping {{ $labels.instance }} is heavy",
        description=(
            "A scrape of {{ $labels.instance }} has more samples than the budget of "
            f"{SERIES_BUDGET}, or takes longer than {knobs.number('seconds'):g} s: the number is "
            "{{ $value | humanize }}."
        ),
    )


ALERTS = {
    "AgentServiceDown": service_down,
    "AgentServiceAbsent": service_absent,
    "AgentWatchdog": watchdog,
    "AgentSaturated": saturated,
    "AgentRequestsShed": requests_shed,
    "AgentEventLoopBlocked": event_loop_blocked,
    "AgentScrapeTooHeavy": scrape_too_heavy,
}
