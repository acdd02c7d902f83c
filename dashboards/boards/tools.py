"""Tools: their errors, their latency, and the threads of tools that hang."""

from app.telemetry.catalogue import (
    AGENT,
    REJECTION,
    TASKS_ABANDONED,
    THREADS_ABANDONED,
    THREADS_BUSY,
    THREADS_LIMIT,
    TOOL,
    TOOL_DURATION,
    TOOL_OUTCOME,
    TOOL_REJECTED,
)
from dashboards.panels import (
    PART,
    PER_MINUTE,
    PIECES,
    SECONDS,
    Column,
    Dashboard,
    Row,
    graph,
    heat,
    row,
    table,
)
from dashboards.queries import (
    RANGE,
    growth,
    level,
    per_minute,
    quantile,
    rate,
    share,
    spread,
    total,
)
from dashboards.rules.alert import Board
from dashboards.rules.promql import INSTANCE
from dashboards.rules.tools import BROKEN, TRIED
from dashboards.rules.values import Values

_ERRORS, _INVENTED = ("AgentToolErrors",), ("AgentHallucinatedTools",)
_THREADS = ("AgentToolThreadsAbandoned",)


def dashboard(values: Values) -> Dashboard:
    """Return the dashboard "Tools"."""
    return Dashboard(
        Board.TOOLS,
        "4 Tools",
        "Do the tools work, how long do they take, and what do hung ones leave behind?",
        (_work(values), _SLOW, _INVENTIONS, _LEFT, _ALL),
    )


def _work(values: Values) -> Row:
    return row(
        "Do they work?",
        graph(
            "Tool calls by outcome",
            "How tool calls end. tool_error is an error that the model reads and may work around; "
            "timeout was cancelled at the run's deadline.",
            PER_MINUTE,
            per_minute(TOOL_DURATION, TOOL_OUTCOME),
            stacked=True,
            runbooks=_ERRORS,
        ),
        graph(
            "Share of calls that failed, by tool",
            "Calls that failed or hung. Calls that we cancelled do not count. Above the dashed "
            "line there is an alert.",
            PART,
            share(
                rate(TOOL_DURATION, TOOL, outcome=BROKEN),
                rate(TOOL_DURATION, TOOL, outcome=TRIED),
            ),
            alarms=(values["AgentToolErrors"].number("share"),),
            most=1,
            runbooks=_ERRORS,
        ),
    )


_SLOW = row(
    "How long they take",
    graph(
        "Duration of a call, by tool",
        "All but one in twenty calls of a tool took less than this.",
        SECONDS,
        quantile(0.95, TOOL_DURATION, TOOL),
        runbooks=("AgentRunTimeouts",),
    ),
    heat(
        "Distribution of call durations",
        "Each column is a stretch of time; the darker a cell, the more calls took that long.",
        SECONDS,
        spread(TOOL_DURATION),
    ),
)

_INVENTIONS = row(
    "Rejected calls",
    graph(
        "Rejected calls, by reason",
        "The model asked for a tool that does not exist (unknown_tool), or with arguments that do "
        "not fit (invalid_args).",
        PER_MINUTE,
        per_minute(TOOL_REJECTED, REJECTION),
        stacked=True,
        runbooks=_INVENTED,
    ),
    graph(
        "Rejected calls, by agent",
        "The usual cause is a recent change of the model, the prompt or the tools.",
        PER_MINUTE,
        per_minute(TOOL_REJECTED, AGENT),
        runbooks=_INVENTED,
    ),
)

_LEFT = row(
    "Threads and tasks of hung tools",
    graph(
        "Threads",
        "Sync tools run on threads. Above the dashed line, calls wait for a thread.",
        PIECES,
        level("sum", THREADS_BUSY).named("busy"),
        level("sum", THREADS_ABANDONED).named("abandoned"),
        limits=(level("sum", THREADS_LIMIT).named("limit"),),
        runbooks=_THREADS,
    ),
    graph(
        "Abandoned work, by instance",
        "Threads and tasks that still work for runs that have ended. Only the tool itself or a "
        "restart can stop them.",
        PIECES,
        level("sum", THREADS_ABANDONED, INSTANCE).named("threads {{instance}}"),
        level("sum", TASKS_ABANDONED, INSTANCE).named("tasks {{instance}}"),
        runbooks=_THREADS,
    ),
)

_CALLS = growth(TOOL_DURATION, TOOL)
_ALL = row(
    "Tool by tool",
    table(
        "All tools",
        "One line for each tool, over the time that is shown.",
        Column("calls", total(TOOL_DURATION, TOOL), PIECES),
        Column("failed", share(growth(TOOL_DURATION, TOOL, outcome=BROKEN), _CALLS), PART),
        Column("cancelled at the deadline", total(TOOL_DURATION, TOOL, outcome="timeout"), PIECES),
        Column("p50", quantile(0.5, TOOL_DURATION, TOOL, over=RANGE), SECONDS),
        Column("p95", quantile(0.95, TOOL_DURATION, TOOL, over=RANGE), SECONDS),
        runbooks=_ERRORS,
    ),
)
