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
    "Requests",
    graph(
        "Requests by status",
        "Responses by status. 2.. is a success, 4.. the caller's fault, 5.. ours or a model's.",
        PER_MINUTE,
        per_minute(HTTP_DURATION, STATUS, route=CALLERS),
        stacked=True,
        width=8,
        runbooks=_SHED,
    ),
    graph(
        "Duration of a request, by route",
        "All but one in twenty requests took less than this, to the last byte of the answer.",
        SECONDS,
        quantile(0.95, HTTP_DURATION, ROUTE, route=CALLERS),
        width=8,
    ),
    graph(
        "Refused requests",
        "Refused before a run started: the service is full (overloaded), shuts down (draining), "
        "does not know the caller, or cannot use its store.",
        PER_MINUTE,
        per_minute(REJECTED, REFUSAL),
        stacked=True,
        width=8,
        runbooks=_SHED,
    ),
)

_QUEUE = row(
    "Queue",
    graph(
        "Runs in flight, by mode",
        "Runs that have a caller, queued and running. The dashed line is how many may run at "
        "the same time.",
        PIECES,
        level("sum", IN_FLIGHT, MODE, state="running", mode=WITH_CALLER).named("{{mode}} running"),
        level("sum", IN_FLIGHT, state="queued", mode=WITH_CALLER).named("queued"),
        limits=(level("sum", CONCURRENCY_LIMIT).named("limit"),),
        width=8,
        runbooks=_BACKLOG,
    ),
    graph(
        "Time in the queue, by agent",
        "All but one in twenty runs waited less than this for a slot.",
        SECONDS,
        quantile(0.95, QUEUE_WAIT, AGENT),
        width=8,
        runbooks=_BACKLOG,
    ),
    graph(
        "Oldest queued run, by agent",
        "How long the oldest queued run has been waiting.",
        SECONDS,
        level("max", OLDEST_AGE, AGENT, state="queued"),
        width=8,
        runbooks=_BACKLOG,
    ),
)

_OUT = row(
    "Streams",
    graph(
        "Readers of streams",
        "Connections that follow a run by its events.",
        PIECES,
        level("sum", STREAMS, AGENT),
        width=8,
    ),
    graph(
        "Time to the first event, by agent",
        "How long a reader waits for the first event; p95.",
        SECONDS,
        quantile(0.95, STREAM_FIRST_EVENT, AGENT),
        width=8,
    ),
    graph(
        "Readers that left before the end",
        "They closed the connection (left), or did not read and were disconnected (stalled).",
        PER_MINUTE,
        per_minute(STREAM_DISCONNECTS, DISCONNECT_REASON),
        stacked=True,
        width=8,
    ),
)

_READY = row(
    "Readiness",
    states(
        "Readiness checks",
        "Each check of /health/ready over time. If capacity is not ok, the service is full.",
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
        "Do requests arrive, do they get a slot, and do readers get their events?",
        (_IN, _QUEUE, _OUT, _READY),
    )
