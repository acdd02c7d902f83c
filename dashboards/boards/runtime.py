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
    "Instances and versions",
    states(
        "Instances",
        "Whether Prometheus reached each instance.",
        level("min", UP, INSTANCE),
        runbooks=("AgentServiceDown",),
    ),
    table(
        "Versions",
        "The version of each instance. If two lines stay, a deploy has stopped halfway.",
        Column("instances", level("count", BUILD_INFO, *BUILD_INFO.labels), PIECES),
        width=12,
        height=5,
    ),
)

_LOOP = row(
    "The event loop",
    graph(
        "Event loop lag, by instance",
        "All runs of an instance share one loop. All but one in a hundred of its timers were at "
        "most this late; callers notice more than a tenth of a second.",
        SECONDS,
        quantile(0.99, LOOP_LAG, INSTANCE),
        width=8,
        runbooks=_BLOCKED,
    ),
    graph(
        "Event loop blocked, by instance",
        "How often code blocked the loop, and so every run. The log line event_loop_blocked "
        "names the line of code.",
        PER_MINUTE,
        per_minute(LOOP_BLOCKED, INSTANCE),
        width=8,
        runbooks=_BLOCKED,
    ),
    graph(
        "Busy threads, by instance",
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
        "Cores in use. One process has one event loop: near 1 it is fully used.",
        PIECES,
        rate(CPU, INSTANCE),
        width=6,
        runbooks=_BLOCKED,
    ),
    graph(
        "Memory, by instance",
        "Memory of each process. If a line only rises, there is a leak.",
        BYTES,
        level("sum", MEMORY, INSTANCE),
        width=6,
    ),
    graph(
        "Open files, by instance",
        "Files and connections, as a share of the system's limit. At 100 % nothing can connect.",
        PART,
        share(level("sum", OPEN_FILES, INSTANCE), level("sum", MOST_FILES, INSTANCE)),
        width=6,
    ),
    graph(
        "Age of the process, by instance",
        "Time since it started. A sawtooth is a process that dies again and again.",
        DURATION,
        since(STARTED, INSTANCE),
        width=6,
        runbooks=("AgentServiceDown",),
    ),
)


def _trust(values: Values) -> Row:
    return row(
        "Telemetry of the service itself",
        graph(
            "Telemetry errors, by part",
            "A part of the telemetry raised. Runs are not affected, but data is missing on these "
            "pages, in the traces or in the log.",
            PER_MINUTE,
            per_minute(TELEMETRY_ERRORS, SINK),
            stacked=True,
            width=8,
            runbooks=_ERRORS,
        ),
        graph(
            "Lost spans and log lines",
            "Spans that no collector accepted, and log lines that were not read in time.",
            PER_MINUTE,
            per_minute(SPANS_DROPPED, DROP).named("spans {{reason}}"),
            per_minute(LOGS_DROPPED).named("log lines"),
            stacked=True,
            width=8,
            runbooks=_DROPPED,
        ),
        graph(
            "Label values counted as _other",
            "Values beyond the maximum of a label. They all become _other.",
            PER_MINUTE,
            per_minute(LABEL_OVERFLOW, LABEL),
            stacked=True,
            width=8,
            runbooks=("AgentLabelOverflow",),
        ),
        graph(
            "Samples of a scrape, by instance",
            "How many samples an instance has. The dashed line is its budget.",
            PIECES,
            level("max", SCRAPED_SAMPLES, INSTANCE),
            alarms=(SERIES_BUDGET,),
            runbooks=_HEAVY,
        ),
        graph(
            "Duration of a scrape, by instance",
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
        "Are the processes healthy, and are their metrics complete?",
        (_RUNS, _LOOP, _PROCESS, _trust(values)),
    )
