"""Alerts on background runs and their store.

Their gauges are read from the store, so every replica says the same: `max`, never `sum`.
"""

from app.telemetry.catalogue import (
    AGENT,
    JOURNAL_AGE,
    READY,
    STORE_FREE,
    STORE_RESERVE,
    TASK_OLDEST_AGE,
    TASK_RECOVERED,
    TASKS_UNSERVABLE,
)
from dashboards.rules.alert import Alert, Board, Severity
from dashboards.rules.promql import INSTANCE, increase, now, on
from dashboards.rules.values import Knobs


def task_backlog(knobs: Knobs) -> Alert:
    """Accepted background runs wait, and no worker takes them."""
    oldest = now("max", TASK_OLDEST_AGE, AGENT, state="queued")
    return Alert(
        name=knobs.name,
        expr=f"{oldest} > {knobs.seconds('age'):g}",
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.BACKGROUND,
        summary="Background runs of {{ $labels.agent }} wait",
        description=(
            "The oldest background run of {{ $labels.agent }} has waited for "
            "{{ $value | humanizeDuration }}."
        ),
    )


def task_recoveries(knobs: Knobs) -> Alert:
    """Processes die while they execute runs, and others take those over."""
    window = knobs.span("window")
    return Alert(
        name=knobs.name,
        expr=f"{increase(TASK_RECOVERED, window, AGENT)} >= {knobs.number('tasks'):g}",
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.BACKGROUND,
        summary="Background runs of {{ $labels.agent }} are taken over from dead processes",
        description=(
            '{{ $value | printf "%.0f" }} background runs of {{ $labels.agent }} were taken over '
            f"from processes that died in the last {window}."
        ),
    )


def tasks_unservable(knobs: Knobs) -> Alert:
    """Accepted runs wait for an agent that no process serves."""
    return Alert(
        name=knobs.name,
        expr=f"{now('max', TASKS_UNSERVABLE)} > {knobs.number('tasks'):g}",
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.BACKGROUND,
        summary="Background runs of {{ $labels.job }} wait for an agent that is not served",
        description=(
            "{{ $value }} background runs wait for an agent that no process of {{ $labels.job }} "
            "serves. They wait until one does."
        ),
    )


def store_disk_low(knobs: Knobs) -> Alert:
    """The disk of the store is nearly full: soon the service refuses new background runs."""
    free, reserve = now("min", STORE_FREE, INSTANCE), now("max", STORE_RESERVE, INSTANCE)
    return Alert(
        name=knobs.name,
        expr=f"{free}\n< {on(INSTANCE)}\n({knobs.number('reserves'):g} * {reserve})",
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.BACKGROUND,
        summary="The disk of the store of {{ $labels.instance }} is nearly full",
        description=(
            "{{ $value | humanize1024 }}B are left on the disk of the store of "
            "{{ $labels.instance }}. Below its reserve, new background runs are refused."
        ),
    )


def store_unusable(knobs: Knobs) -> Alert:
    """The store does not answer, or has no room: the service refuses background runs only."""
    return Alert(
        name=knobs.name,
        expr=f"{now('min', READY, INSTANCE, check='store')} == 0",
        lasts=knobs.span("for"),
        severity=Severity.CRITICAL,
        board=Board.BACKGROUND,
        summary="{{ $labels.instance }} cannot use its store",
        description=(
            f"For {knobs.span('for')} the store of {{{{ $labels.instance }}}} has not answered, or "
            "has had no room. Background runs are refused; other runs go on."
        ),
    )


def journal_stuck(knobs: Knobs) -> Alert:
    """The store does not take what a run adds, although it may answer everything else."""
    return Alert(
        name=knobs.name,
        expr=f"{now('max', JOURNAL_AGE, INSTANCE)} > {knobs.seconds('age'):g}",
        lasts=knobs.span("for"),
        severity=Severity.CRITICAL,
        board=Board.BACKGROUND,
        summary="The store does not take what a background run of {{ $labels.instance }} writes",
        description=(
            "The oldest entry of a background run of {{ $labels.instance }} has waited for "
            "{{ $value | humanizeDuration }} to be written. Its run calls no tool and does not end "
            "before that."
        ),
    )


ALERTS = {
    "AgentTaskBacklog": task_backlog,
    "AgentTaskRecoveries": task_recoveries,
    "AgentTasksUnservable": tasks_unservable,
    "AgentStoreDiskLow": store_disk_low,
    "AgentStoreUnusable": store_unusable,
    "AgentJournalStuck": journal_stuck,
}
