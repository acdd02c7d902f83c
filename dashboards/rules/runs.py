"""Alerts on how runs end: at their limit, at their deadline, never, or never well."""

from app.telemetry.catalogue import (
    AGENT,
    DEADLINE,
    ITERATION_RATIO,
    LAST_SUCCESS,
    LIMIT_HITS,
    LONGEST_DEADLINE,
    OLDEST_AGE,
    PHASE,
    RUNS,
    TIMEOUTS,
)
from dashboards.rules.alert import Alert, Board, Severity
from dashboards.rules.promql import INSTANCE, increase, now, on, quantile, share
from dashboards.rules.slo import BAD, COUNTED
from dashboards.rules.values import Knobs


def iteration_limit_hits(knobs: Knobs) -> Alert:
    """A share of an agent's runs reaches its limit before the agent has an answer."""
    window = knobs.span("window")
    hits = increase(LIMIT_HITS, window, AGENT)
    hit_share = share(hits, increase(RUNS, window, AGENT, outcome=COUNTED))
    return Alert(
        name=knobs.name,
        expr=(f"{hit_share} > {knobs.number('share'):g}\nand\n{hits} >= {knobs.number('runs'):g}"),
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.ITERATIONS,
        summary="{{ $labels.agent }} is stopped at its iteration limit",
        description=(
            "{{ $value | humanizePercentage }} of the runs of {{ $labels.agent }} were stopped at "
            f"their iteration limit in the last {window}."
        ),
    )


def iterations_near_limit(knobs: Knobs) -> Alert:
    """The early warning: runs come close to their limit, and the next ones may hit it."""
    window = knobs.span("window")
    return Alert(
        name=knobs.name,
        expr=(
            f"{quantile(0.95, ITERATION_RATIO, window, AGENT)} > {knobs.number('share'):g}\n"
            f"and\n{increase(ITERATION_RATIO, window, AGENT)} >= {knobs.number('runs'):g}"
        ),
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.ITERATIONS,
        summary="{{ $labels.agent }} comes close to its iteration limit",
        description=(
            "One run in twenty of {{ $labels.agent }} used {{ $value | humanizePercentage }} or "
            f"more of its iteration limit in the last {window}."
        ),
    )


def run_timeouts(knobs: Knobs) -> Alert:
    """Runs miss their deadlines, by their phase at that moment."""
    window = knobs.span("window")
    missed = increase(RUNS, window, AGENT, outcome="timeout")
    missed_share = share(missed, increase(RUNS, window, AGENT, outcome=COUNTED))
    return Alert(
        name=knobs.name,
        expr=(
            f"{increase(TIMEOUTS, window, AGENT, PHASE)} >= {knobs.number('runs'):g}\n"
            f"and {on(AGENT)}\n{missed_share} > {knobs.number('share'):g}"
        ),
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.ITERATIONS,
        summary="Runs of {{ $labels.agent }} time out in phase {{ $labels.phase }}",
        description=(
            '{{ $value | printf "%.0f" }} runs of {{ $labels.agent }} missed their deadline in the '
            f"last {window}; they were waiting in phase {{{{ $labels.phase }}}}."
        ),
    )


def run_stuck(knobs: Knobs) -> Alert:
    """A run is older than any deadline allows, so the service itself is at fault."""
    longest = now("max", LONGEST_DEADLINE, INSTANCE, AGENT)
    oldest = now("max", OLDEST_AGE, INSTANCE, AGENT, state="running")
    return Alert(
        name=knobs.name,
        expr=f"{oldest}\n> {on(INSTANCE, AGENT)}\n({longest} + {knobs.seconds('margin'):g})",
        lasts=knobs.span("for"),
        severity=Severity.CRITICAL,
        board=Board.OVERVIEW,
        summary="A run of {{ $labels.agent }} is older than every deadline",
        description=(
            "The oldest run of {{ $labels.agent }} on {{ $labels.instance }} has been running for "
            "{{ $value | humanizeDuration }}, longer than any deadline that a caller may ask for."
        ),
    )


def no_success(knobs: Knobs) -> Alert:
    """An agent gets runs and completes none."""
    window = knobs.span("window")
    bad = increase(RUNS, window, AGENT, outcome=BAD)
    last = now("max", LAST_SUCCESS, AGENT)
    return Alert(
        name=knobs.name,
        expr=(
            f"{bad} >= {knobs.number('runs'):g}\n"
            f"and {on(AGENT)}\n(time() - {last}) > {knobs.seconds('window'):g}"
        ),
        lasts=knobs.span("for"),
        severity=Severity.CRITICAL,
        board=Board.OVERVIEW,
        summary="No run of {{ $labels.agent }} succeeds",
        description=(
            '{{ $value | printf "%.0f" }} runs of {{ $labels.agent }} ended badly in the last '
            f"{window}, and not one was completed."
        ),
    )


def queue_backlog(knobs: Knobs) -> Alert:
    """Runs spend much of their deadline waiting for a slot."""
    oldest = now("max", OLDEST_AGE, INSTANCE, AGENT, state="queued")
    deadline = now("max", DEADLINE, INSTANCE, AGENT)
    return Alert(
        name=knobs.name,
        expr=f"{oldest}\n> {on(INSTANCE, AGENT)}\n({knobs.number('share'):g} * {deadline})",
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.OVERVIEW,
        summary="Runs of {{ $labels.agent }} wait too long for a slot",
        description=(
            "The oldest queued run of {{ $labels.agent }} on {{ $labels.instance }} has waited for "
            "{{ $value | humanizeDuration }}, which counts against its deadline."
        ),
    )


ALERTS = {
    "AgentIterationLimitHits": iteration_limit_hits,
    "AgentIterationsNearLimit": iterations_near_limit,
    "AgentRunTimeouts": run_timeouts,
    "AgentRunStuck": run_stuck,
    "AgentNoSuccess": no_success,
    "AgentQueueBacklog": queue_backlog,
}
