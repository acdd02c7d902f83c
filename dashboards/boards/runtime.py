"""The processes, and whether their telemetry can be trusted."""

from app.telemetry.catalogue import (
    BUILD_INFO,
    DROP,
    LABEL,
    LABEL_OVERFLOW,
    LOGS_DROPPED,
    LOOP_BLOCKED,
    LOOP_LAG,
    SERIES_BUDGET,
    SINK,
    SPANS_DROPPED,
    TELEMETRY_ERRORS,
    THREADS_BUSY,
    THREADS_LIMIT,
)
from dashboards.borrowed import (
    CPU,
    MEMORY,
    MOST_FILES,
    OPEN_FILES,
    SCRAPE_DURATION,
    SCRAPED_SAMPLES,
    STARTED,
    UP,
)
from dashboards.panels import (
    BYTES,
    DURATION,
    PART,
    PER_MINUTE,
    PIECES,
    SECONDS,
    Column,
    Dashboard,
    Row,
    graph,
    row,
    states,
    table,
)
from dashboards.queries import level, per_minute, quantile, rate, share, since
from dashboards.rules.alert import Board
from dashboards.rules.promql import INSTANCE
from dashboards.rules.values import Values

_BLOCKED, _DROPPED = ("AgentEventLoopBlocked",), ("AgentTelemetryDropped",)
_ERRORS, _HEAVY = ("AgentTelemetryErrors",), ("AgentScrapeTooHeavy",)

_RUNS = row(
    "What runs",
    states(
        "Instances",
        "Whether Prometheus reached each instance.",
        level("min", UP, INSTANCE),
        runbooks=("AgentServiceDown",),
    ),
    table(
        "Versions",
        "What each instance runs. Two lines that stay are a deploy that stopped halfway.",
        Column("instances", level("count", BUILD_INFO, *BUILD_INFO.labels), PIECES),
        width=12,
        height=5,
    ),
)

_LOOP = row(
    "The event loop",
    graph(
        "How late the event loop is, by instance",
        "All of an instance's runs share one loop. All but one in a hundred of its timers were "
        "served within this time; more than a tenth of a second is felt by callers.",
        SECONDS,
        quantile(0.99, LOOP_LAG, INSTANCE),
        width=8,
        runbooks=_BLOCKED,
    ),
    graph(
        "Blocks of the event loop, by instance",
        "Times that some code held the loop, and so every run. The log line event_loop_blocked "
        "names the line of code.",
        PER_MINUTE,
        per_minute(LOOP_BLOCKED, INSTANCE),
        width=8,
        runbooks=_BLOCKED,
    ),
    graph(
        "Threads at work, by instance",
        "Threads for sync tools, models and nodes. The dashed line is how many there may be on one "
        "instance.",
        PIECES,
        level("sum", THREADS_BUSY, INSTANCE),
        limits=(level("max", THREADS_LIMIT).named("limit"),),
        width=8,
        runbooks=("AgentToolThreadsAbandoned",),
    ),
)

_PROCESS = row(
    "The processes",
    graph(
        "CPU, by instance",
        "Cores in use. One process has one event loop: near 1, it has no time left.",
        PIECES,
        rate(CPU, INSTANCE),
        width=6,
        runbooks=_BLOCKED,
    ),
    graph(
        "Memory, by instance",
        "Memory that each process holds. A line that only climbs is a leak.",
        BYTES,
        level("sum", MEMORY, INSTANCE),
        width=6,
    ),
    graph(
        "Open files, by instance",
        "Files and connections, of those that the system allows. At 100 % nothing can connect.",
        PART,
        share(level("sum", OPEN_FILES, INSTANCE), level("sum", MOST_FILES, INSTANCE)),
        width=6,
    ),
    graph(
        "Age of the process, by instance",
        "Time since it started. A saw is a process that keeps dying.",
        DURATION,
        since(STARTED, INSTANCE),
        width=6,
        runbooks=("AgentServiceDown",),
    ),
)


def _trust(values: Values) -> Row:
    return row(
        "Can this be trusted?",
        graph(
            "Faults of the telemetry, by part",
            "What could not be told. A run is never harmed by it, but something is missing on "
            "these pages, in the traces or in the log.",
            PER_MINUTE,
            per_minute(TELEMETRY_ERRORS, SINK),
            stacked=True,
            width=8,
            runbooks=_ERRORS,
        ),
        graph(
            "Spans and log lines lost",
            "Spans that no collector took, and log lines that nobody read in time.",
            PER_MINUTE,
            per_minute(SPANS_DROPPED, DROP).named("spans {{reason}}"),
            per_minute(LOGS_DROPPED).named("log lines"),
            stacked=True,
            width=8,
            runbooks=_DROPPED,
        ),
        graph(
            "Label values told as _other",
            "Names beyond the room that a label has. What is told as _other cannot be told apart.",
            PER_MINUTE,
            per_minute(LABEL_OVERFLOW, LABEL),
            stacked=True,
            width=8,
            runbooks=("AgentLabelOverflow",),
        ),
        graph(
            "Samples of a scrape, by instance",
            "How much an instance tells at once. The dashed line is its budget.",
            PIECES,
            level("max", SCRAPED_SAMPLES, INSTANCE),
            alarms=(SERIES_BUDGET,),
            runbooks=_HEAVY,
        ),
        graph(
            "Time of a scrape, by instance",
            "How long Prometheus waits for it. Above the dashed line there is an alert.",
            SECONDS,
            level("max", SCRAPE_DURATION, INSTANCE),
            alarms=(values["AgentScrapeTooHeavy"].number("seconds"),),
            runbooks=_HEAVY,
        ),
    )


def dashboard(values: Values) -> Dashboard:
    """Return the dashboard "Runtime and telemetry health"."""
    return Dashboard(
        Board.RUNTIME,
        "8 Runtime and telemetry health",
        "Are the processes well, and can what they tell be trusted?",
        (_RUNS, _LOOP, _PROCESS, _trust(values)),
    )
