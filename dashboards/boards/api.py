"""The API: requests, the queue, and readers of streams."""

from app.telemetry.catalogue import (
    AGENT,
    CHECK,
    CONCURRENCY_LIMIT,
    DISCONNECT_REASON,
    HTTP_DURATION,
    IN_FLIGHT,
    MODE,
    OLDEST_AGE,
    QUEUE_WAIT,
    READY,
    REFUSAL,
    REJECTED,
    ROUTE,
    STATUS,
    STREAM_DISCONNECTS,
    STREAM_FIRST_EVENT,
    STREAMS,
)
from dashboards.boards.overview import WITH_CALLER
from dashboards.panels import PER_MINUTE, PIECES, SECONDS, Dashboard, graph, row, states
from dashboards.queries import level, per_minute, quantile
from dashboards.rules.alert import Board
from dashboards.rules.promql import Without
from dashboards.rules.values import Values

# Prometheus and orchestrators request these; they are no callers.
CALLERS = Without(("/metrics", "/health.*"))
_SHED, _BACKLOG = ("AgentRequestsShed",), ("AgentQueueBacklog", "AgentSaturated")

_IN = row(
    "The way in",
    graph(
        "Requests by status",
        "Answers of the service. 2.. is fine, 4.. is the caller's fault, 5.. is ours or a model's.",
        PER_MINUTE,
        per_minute(HTTP_DURATION, STATUS, route=CALLERS),
        stacked=True,
        width=8,
        runbooks=_SHED,
    ),
    graph(
        "Time of a request, by route",
        "All but one in twenty requests took less than this, to the last byte of the answer.",
        SECONDS,
        quantile(0.95, HTTP_DURATION, ROUTE, route=CALLERS),
        width=8,
    ),
    graph(
        "Requests turned away",
        "Refused before any work was done: the service is full (overloaded), stops (draining), "
        "does not know the caller, or cannot use its store.",
        PER_MINUTE,
        per_minute(REJECTED, REFUSAL),
        stacked=True,
        width=8,
        runbooks=_SHED,
    ),
)

_QUEUE = row(
    "Waiting for a place",
    graph(
        "Runs in flight, by mode",
        "Runs that have a caller, waiting and at work. The dashed line is how many may work at "
        "the same time.",
        PIECES,
        level("sum", IN_FLIGHT, MODE, state="running", mode=WITH_CALLER).named("{{mode}} at work"),
        level("sum", IN_FLIGHT, state="queued", mode=WITH_CALLER).named("waiting"),
        limits=(level("sum", CONCURRENCY_LIMIT).named("limit"),),
        width=8,
        runbooks=_BACKLOG,
    ),
    graph(
        "Time in the queue, by agent",
        "All but one in twenty runs waited less than this for a place.",
        SECONDS,
        quantile(0.95, QUEUE_WAIT, AGENT),
        width=8,
        runbooks=_BACKLOG,
    ),
    graph(
        "Longest wait of now, by agent",
        "How long the oldest run that still waits has been waiting.",
        SECONDS,
        level("max", OLDEST_AGE, AGENT, state="queued"),
        width=8,
        runbooks=_BACKLOG,
    ),
)

_OUT = row(
    "The way out",
    graph(
        "Readers of streams",
        "Connections that are told of a run while it goes.",
        PIECES,
        level("sum", STREAMS, AGENT),
        width=8,
    ),
    graph(
        "Time to the first event, by agent",
        "How long a reader waits before anything happens; p95.",
        SECONDS,
        quantile(0.95, STREAM_FIRST_EVENT, AGENT),
        width=8,
    ),
    graph(
        "Readers that went before the end",
        "Left by themselves (left), or were dropped because they did not read (stalled).",
        PER_MINUTE,
        per_minute(STREAM_DISCONNECTS, DISCONNECT_REASON),
        stacked=True,
        width=8,
    ),
)

_READY = row(
    "Ready for more?",
    states(
        "Readiness checks",
        "Each check of /health/ready over time. A capacity that is not fine is a full service.",
        level("min", READY, CHECK),
        width=24,
        runbooks=_SHED,
    ),
)


def dashboard(values: Values) -> Dashboard:
    """Return the dashboard "API and streaming"."""
    return Dashboard(
        Board.API,
        "6 API and streaming",
        "Do requests come in, do they find a place, and do their readers get what they wait for?",
        (_IN, _QUEUE, _OUT, _READY),
    )
