"""Background runs: the queue in the store, the workers, and the health of the store.

Every instance reads the same values from the store, so panels show the greatest.
"""

from app.telemetry.catalogue import (
    AGENT,
    ATTEMPT_OUTCOME,
    CHECK,
    JOURNAL_AGE,
    READY,
    STATE,
    STORE_FREE,
    STORE_RESERVE,
    TASK_ATTEMPTS,
    TASK_OLDEST_AGE,
    TASK_RECOVERED,
    TASKS_QUEUED,
    TASKS_RUNNING,
    TASKS_UNSERVABLE,
)
from dashboards.colours import FEW_ARE_FINE
from dashboards.panels import (
    BYTES,
    PER_MINUTE,
    PIECES,
    SECONDS,
    Dashboard,
    Row,
    graph,
    number,
    row,
    states,
)
from dashboards.queries import level, per_minute, total
from dashboards.rules.alert import Board
from dashboards.rules.promql import INSTANCE
from dashboards.rules.values import Values

_BACKLOG, _RECOVERED = ("AgentTaskBacklog",), ("AgentTaskRecoveries",)
_STORE = ("AgentStoreUnusable", "AgentStoreDiskLow")

_NOW = row(
    "Now",
    number(
        "Queued",
        "Background runs that wait in the store.",
        PIECES,
        level("max", TASKS_QUEUED, AGENT).put_into("sum ({})"),
        width=6,
        runbooks=_BACKLOG,
    ),
    number(
        "Running",
        "Background runs that any process executes.",
        PIECES,
        level("max", TASKS_RUNNING, AGENT).put_into("sum ({})"),
        width=6,
    ),
    number(
        "Agent not served",
        "Background runs that wait for an agent that no process serves.",
        PIECES,
        level("max", TASKS_UNSERVABLE),
        steps=FEW_ARE_FINE,
        width=6,
        runbooks=("AgentTasksUnservable",),
    ),
    number(
        "Taken over",
        "Background runs that another process took over after theirs died or hung, in the time "
        "that is shown.",
        PIECES,
        total(TASK_RECOVERED),
        steps=FEW_ARE_FINE,
        width=6,
        runbooks=_RECOVERED,
    ),
)


def _queue(values: Values) -> Row:
    return row(
        "Queued and running",
        graph(
            "Queued, by agent",
            "Background runs that wait in the store. If a line only rises, add processes.",
            PIECES,
            level("max", TASKS_QUEUED, AGENT),
            width=8,
            runbooks=_BACKLOG,
        ),
        graph(
            "Running, by agent",
            "Background runs that any process executes.",
            PIECES,
            level("max", TASKS_RUNNING, AGENT),
            width=8,
        ),
        graph(
            "Oldest background run",
            "How long the oldest background run has been queued or running. A run that is queued "
            "longer than the dashed line causes an alert.",
            SECONDS,
            level("max", TASK_OLDEST_AGE, STATE),
            alarms=(values["AgentTaskBacklog"].seconds("age"),),
            width=8,
            runbooks=_BACKLOG,
        ),
    )


_ENDS = row(
    "How attempts end",
    graph(
        "Attempts by outcome",
        "One background run may need several attempts. After handed_over another process continues "
        "the run.",
        PER_MINUTE,
        per_minute(TASK_ATTEMPTS, ATTEMPT_OUTCOME),
        stacked=True,
    ),
    graph(
        "Taken over, by agent",
        "Its process was killed, ran out of memory, hung, or could not store the result.",
        PER_MINUTE,
        per_minute(TASK_RECOVERED, AGENT),
        runbooks=_RECOVERED,
    ),
)


def _holds(values: Values) -> Row:
    return row(
        "The store",
        graph(
            "Free disk space of the store, by instance",
            "Below the dashed line new background runs are refused.",
            BYTES,
            level("min", STORE_FREE, INSTANCE),
            limits=(level("max", STORE_RESERVE).named("reserve"),),
            runbooks=_STORE,
        ),
        states(
            "Store usable, by instance",
            "Whether the store answers each instance and has space for new background runs.",
            level("min", READY, INSTANCE, CHECK, check="store"),
            height=8,
            runbooks=_STORE,
        ),
        graph(
            "Oldest unwritten entry, by instance",
            "How long an entry of a background run has waited to be written. A tool call waits for "
            "it. An entry that waits longer than the dashed line causes an alert.",
            SECONDS,
            level("max", JOURNAL_AGE, INSTANCE),
            alarms=(values["AgentJournalStuck"].seconds("age"),),
            width=24,
            runbooks=("AgentJournalStuck", *_STORE),
        ),
    )


def dashboard(values: Values) -> Dashboard:
    """Return the dashboard "Background runs"."""
    return Dashboard(
        Board.BACKGROUND,
        "7 Background runs",
        "What is queued, which processes execute it, and does the store work?",
        (_NOW, _queue(values), _ENDS, _holds(values)),
    )
