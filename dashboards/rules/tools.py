"""Alerts on tools: they fail, hang, or do not exist."""

from app.telemetry.catalogue import (
    AGENT,
    REJECTION,
    THREADS_ABANDONED,
    THREADS_LIMIT,
    TOOL,
    TOOL_DURATION,
    TOOL_REJECTED,
)
from dashboards.rules.alert import Alert, Board, Severity
from dashboards.rules.promql import INSTANCE, Without, increase, now, on, share
from dashboards.rules.values import Knobs

BROKEN = ("tool_error", "failed", "timeout")
TRIED = Without(("cancelled", "interrupted"))


def tool_errors(knobs: Knobs) -> Alert:
    """A tool raises or does not return in time. Its agent goes on without the result."""
    window = knobs.span("window")
    tried = increase(TOOL_DURATION, window, AGENT, TOOL, outcome=TRIED)
    broken = increase(TOOL_DURATION, window, AGENT, TOOL, outcome=BROKEN)
    return Alert(
        name=knobs.name,
        expr=(
            f"{share(broken, tried)} > {knobs.number('share'):g}\n"
            f"and\n{tried} >= {knobs.number('calls'):g}"
        ),
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.TOOLS,
        summary="Tool {{ $labels.tool }} of {{ $labels.agent }} fails",
        description=(
            "{{ $value | humanizePercentage }} of the calls of {{ $labels.tool }} by "
            f"{{{{ $labels.agent }}}} failed or did not return in the last {window}."
        ),
    )


def tool_threads_abandoned(knobs: Knobs) -> Alert:
    """Sync code of ended runs still executes, and uses threads."""
    abandoned = now("max", THREADS_ABANDONED, INSTANCE)
    limit = now("max", THREADS_LIMIT, INSTANCE)
    return Alert(
        name=knobs.name,
        expr=f"{abandoned}\n> {on(INSTANCE)}\n({knobs.number('share'):g} * {limit})",
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.TOOLS,
        summary="Threads of hung sync code accumulate on {{ $labels.instance }}",
        description=(
            "{{ $value }} threads of {{ $labels.instance }} work for runs that have ended: sync "
            "tools, models or nodes that do not return."
        ),
    )


def hallucinated_tools(knobs: Knobs) -> Alert:
    """A model asks for tools that do not exist, or with arguments that do not fit."""
    window = knobs.span("window")
    wrong = ("unknown_tool", "invalid_args")
    rejected = increase(TOOL_REJECTED, window, AGENT, REJECTION, reason=wrong)
    return Alert(
        name=knobs.name,
        expr=f"{rejected} >= {knobs.number('calls'):g}",
        lasts=knobs.span("for"),
        severity=Severity.INFO,
        board=Board.TOOLS,
        summary="The model of {{ $labels.agent }} asks for tool calls that cannot be run",
        description=(
            '{{ $value | printf "%.0f" }} tool calls of {{ $labels.agent }} could not be run in '
            f"the last {window}: {{{{ $labels.reason }}}}."
        ),
    )


ALERTS = {
    "AgentToolErrors": tool_errors,
    "AgentToolThreadsAbandoned": tool_threads_abandoned,
    "AgentHallucinatedTools": hallucinated_tools,
}
