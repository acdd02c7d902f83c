"""Background runs: the queue in the store, the workers, and the health of the store.

Every instance reads the same values from the store, so panels show the greatest.
"""

from app.telemetry.catalogue import (
    AGENT,
    ATTEMPT_OUTCOME,
    CHECK,
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
    "What there is to do",
    number(
        "Waiting",
        "Background runs that wait in the store.",
        PIECES,
        level("max", TASKS_QUEUED, AGENT).put_into("sum ({})"),
        width=6,
        runbooks=_BACKLOG,
    ),
    number(
        "At work",
        "Background runs at work, on any process.",
        PIECES,
        level("max", TASKS_RUNNING, AGENT).put_into("sum ({})"),
        width=6,
    ),
    number(
        "Nobody serves them",
        "Background runs that wait for an agent that no process serves any more.",
        PIECES,
        level("max", TASKS_UNSERVABLE),
        steps=FEW_ARE_FINE,
        width=6,
        runbooks=("AgentTasksUnservable",),
    ),
    number(
        "Taken over",
        "Background runs whose process died, and that another one went on with, in the time that "
        "is shown.",
        PIECES,
        total(TASK_RECOVERED),
        steps=FEW_ARE_FINE,
        width=6,
        runbooks=_RECOVERED,
    ),
)


def _queue(values: Values) -> Row:
    return row(
        "Waiting and at work",
        graph(
            "Waiting, by agent",
            "Background runs that wait in the store. A line that only climbs needs more processes.",
            PIECES,
            level("max", TASKS_QUEUED, AGENT),
            width=8,
            runbooks=_BACKLOG,
        ),
        graph(
            "At work, by agent",
            "Background runs at work, on any process.",
            PIECES,
            level("max", TASKS_RUNNING, AGENT),
            width=8,
        ),
        graph(
            "Age of the oldest",
            "How long the oldest background run has been waiting or at work. Where one waits "
            "longer than the dashed line there is an alert.",
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
        "One background run may need several attempts. handed_over is one that another process "
        "goes on with.",
        PER_MINUTE,
        per_minute(TASK_ATTEMPTS, ATTEMPT_OUTCOME),
        stacked=True,
    ),
    graph(
        "Taken over from processes that died, by agent",
        "Each is a process that ended in the middle of its work: killed, out of memory, or cut "
        "off from the store.",
        PER_MINUTE,
        per_minute(TASK_RECOVERED, AGENT),
        runbooks=_RECOVERED,
    ),
)

_HOLDS = row(
    "Does the store hold?",
    graph(
        "Room on the disk of the store, by instance",
        "Below the dashed line new background runs are refused.",
        BYTES,
        level("min", STORE_FREE, INSTANCE),
        limits=(level("max", STORE_RESERVE).named("reserve"),),
        runbooks=_STORE,
    ),
    states(
        "The store can be reached",
        "Whether the store answers each instance and has room for new background runs.",
        level("min", READY, INSTANCE, CHECK, check="store"),
        height=8,
        runbooks=_STORE,
    ),
)


def dashboard(values: Values) -> Dashboard:
    """Return the dashboard "Background runs"."""
    return Dashboard(
        Board.BACKGROUND,
        "7 Background runs",
        "What waits in the store, who works on it, and does the store hold?",
        (_NOW, _queue(values), _ENDS, _HOLDS),
    )
