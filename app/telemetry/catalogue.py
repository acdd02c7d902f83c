"""Every metric as data: name, kind, labels, buckets and help.

Instruments, the reference page, dashboards and alerts are built from this, so a wrong name anywhere
is a name that this module does not have. Label values come from enums, route templates,
configuration and registries. Any other value is `_other`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from app.runs.model import CallOutcome, Mode, Outcome, PhaseKind, Rejection, State

OTHER = "_other"

# The most time series of a service, whatever its callers and models do. Ten agents with forty
# tools and five models stay below it; a test counts.
SERIES_BUDGET = 12_000


class Kind(StrEnum):
    """The kind of a metric: a counter has rates, a gauge a value, a histogram quantiles."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Label:
    """One label and the source of its values.

    `values` are fixed. Without them, values are configured at start (agents, tools, routes). With
    `room`, the label also takes unknown values, up to that many.
    """

    name: str
    values: tuple[str, ...] = ()
    room: int = 0


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `edge` names a configured limit that becomes an edge of the buckets."""

    name: str
    kind: Kind
    help: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()
    exemplar: bool = False
    edge: str | None = None

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of its labels, in order."""
        return tuple(label.name for label in self.labels)


def _counter(name: str, text: str, *labels: Label, exemplar: bool = False) -> Metric:
    return Metric(name, Kind.COUNTER, text, labels, exemplar=exemplar)


def _gauge(name: str, text: str, *labels: Label) -> Metric:
    return Metric(name, Kind.GAUGE, text, labels)


def _histogram(
    name: str,
    text: str,
    *labels: Label,
    buckets: tuple[float, ...],
    exemplar: bool = False,
    edge: str | None = None,
) -> Metric:
    return Metric(name, Kind.HISTOGRAM, text, labels, buckets, exemplar, edge)


def _enum(name: str, values: Iterable[str]) -> Label:
    return Label(name, tuple(str(value) for value in values))


_WASTED = (Outcome.TIMEOUT, Outcome.CANCELLED, Outcome.DISCONNECTED, Outcome.FAILED)
_LLM_OUTCOMES = (
    CallOutcome.COMPLETED, CallOutcome.FAILED, CallOutcome.TIMEOUT, CallOutcome.RATE_LIMITED,
    CallOutcome.INCOMPLETE, CallOutcome.CANCELLED, CallOutcome.INTERRUPTED,
)  # fmt: skip
_TOOL_OUTCOMES = (
    CallOutcome.COMPLETED, CallOutcome.TOOL_ERROR, CallOutcome.TIMEOUT, CallOutcome.CANCELLED,
    CallOutcome.INTERRUPTED, CallOutcome.FAILED,
)  # fmt: skip

AGENT, TOOL, ROUTE = Label("agent"), Label("tool", room=64), Label("route")
PROVIDER, MODEL = Label("provider", room=20), Label("model", room=20)
MODE = _enum("mode", Mode)
OUTCOME = _enum("outcome", Outcome)
WASTED = _enum("outcome", _WASTED)
PHASE = _enum("phase", PhaseKind)
STATE = _enum("state", (State.QUEUED, State.RUNNING))
LLM_OUTCOME = _enum("outcome", _LLM_OUTCOMES)
TOOL_OUTCOME = _enum("outcome", _TOOL_OUTCOMES)
RETRY_REASON = _enum("reason", _LLM_OUTCOMES[1:])
TOKEN_TYPE = _enum("type", ("input", "output", "cache_read", "cache_creation", "reasoning"))
REJECTION = _enum("reason", Rejection)
ATTEMPT_OUTCOME = _enum("outcome", (*Outcome, "handed_over"))
REFUSAL = _enum("reason", ("overloaded", "draining", "store_unavailable"))
DISCONNECT_REASON = _enum("reason", ("left", "stalled"))
DROP = _enum("reason", ("queue_full", "export_failed"))
SINK = _enum("sink", ("metrics", "traces", "logs", "handler"))
LABEL = _enum("label", ("agent", "provider", "model", "tool", "route", "method", "reason"))
METHOD = _enum("method", ("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"))
STATUS = Label("status", room=40)
CHECK = Label("check", room=20)
_BUILD = tuple(
    Label(name, room=1) for name in ("version", "commit", "python", "langchain", "langgraph")
)

_RUN_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 180, 300, 600)
_QUEUE_S = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 30, 60, 120, 300)
_LLM_S = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)
_TTFT_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30)
_TOOL_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_HTTP_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_ITERATIONS = (0.0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 64)
_TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_MODEL = (AGENT, PROVIDER, MODEL)

BUILD_INFO = _gauge(
    "agent_build_info",
    "Always 1; the labels have the versions.",
    *_BUILD,
)
RUNS = _counter("agent_runs_total", "Runs that ended.", AGENT, MODE, OUTCOME, exemplar=True)
RUN_DURATION = _histogram(
    "agent_run_duration_seconds",
    "Time from a run's arrival to its end.",
    *(AGENT, OUTCOME),
    buckets=_RUN_S,
    exemplar=True,
    edge="deadline",
)
QUEUE_WAIT = _histogram(
    "agent_run_queue_wait_seconds", "Time a run waited for a slot.", AGENT, buckets=_QUEUE_S
)
ITERATIONS = _histogram(
    "agent_run_iterations",
    "Turns of a run in which the model asked for tools.",
    AGENT,
    buckets=_ITERATIONS,
    edge="iteration_limit",
)
ITERATION_RATIO = _histogram(
    "agent_run_iteration_ratio",
    "Iterations of a run over its limit: near 1 is near the limit.",
    AGENT,
    buckets=_TENTHS,
)
RUN_TOOL_CALLS = _histogram(
    "agent_run_tool_calls", "Tool calls of a run.", AGENT, buckets=(0.0, 1, 2, 4, 8, 16, 32, 64)
)
LIMIT_HITS = _counter(
    "agent_iteration_limit_hits_total",
    "Runs stopped at their iteration limit.",
    AGENT,
    exemplar=True,
)
ANSWERS_REFUSED = _counter(
    "agent_answers_refused_total",
    "Answers in which the model, or a rule of the agent's own, declines; completed all the same.",
    AGENT,
    exemplar=True,
)
TIMEOUTS = _counter(
    "agent_timeouts_total",
    "Runs that missed their deadline, by their phase at that moment.",
    *(AGENT, MODE, PHASE),
    exemplar=True,
)
WASTED_SECONDS = _counter(
    "agent_wasted_seconds_total", "Execution time of runs without an answer.", AGENT, WASTED
)
WASTED_TOKENS = _counter(
    "agent_wasted_tokens_total", "Tokens of runs without an answer.", AGENT, WASTED
)
IN_FLIGHT = _gauge("agent_runs_in_flight", "Runs queued or running now.", AGENT, MODE, STATE)
OLDEST_AGE = _gauge(
    "agent_run_oldest_age_seconds",
    "Age of the oldest run in flight that has a caller; 0 for none.",
    AGENT,
    STATE,
)
ITERATION_LIMIT = _gauge("agent_iteration_limit", "The configured iteration limit.", AGENT)
DEADLINE = _gauge("agent_deadline_seconds", "The configured default deadline.", AGENT)
LONGEST_DEADLINE = _gauge(
    "agent_longest_deadline_seconds", "The longest deadline that a caller may set.", AGENT
)
CONCURRENCY_LIMIT = _gauge("agent_concurrency_limit", "Runs that may execute at the same time.")
LAST_SUCCESS = _gauge(
    "agent_last_success_timestamp_seconds", "When a run last completed; 0 for never.", AGENT
)
LLM_DURATION = _histogram(
    "agent_llm_call_duration_seconds",
    "Time of one model call.",
    *(*_MODEL, LLM_OUTCOME),
    buckets=_LLM_S,
    exemplar=True,
)
LLM_FIRST_TOKEN = _histogram(
    "agent_llm_time_to_first_token_seconds",
    "Time to the first token of a streamed model call.",
    *_MODEL,
    buckets=_TTFT_S,
)
LLM_TOKENS = _counter(
    "agent_llm_tokens_total",
    "Tokens. cache_read is part of input, reasoning part of output: never sum over type.",
    *(*_MODEL, TOKEN_TYPE),
)
LLM_COST = _counter("agent_llm_cost_usd_total", "Cost of calls to priced models.", *_MODEL)
LLM_UNPRICED = _counter(
    "agent_llm_unpriced_calls_total", "Calls of models that have no price.", *_MODEL
)
LLM_RETRIES = _counter(
    "agent_llm_retries_total", "Model calls that were repeated.", *(*_MODEL, RETRY_REASON)
)
TOOL_DURATION = _histogram(
    "agent_tool_call_duration_seconds",
    "Time of one tool call.",
    *(AGENT, TOOL, TOOL_OUTCOME),
    buckets=_TOOL_S,
    exemplar=True,
)
TOOL_REJECTED = _counter(
    "agent_tool_rejected_calls_total",
    "Tool calls that the model asked for and that could not be run.",
    *(AGENT, REJECTION),
)
THREADS_ABANDONED = _gauge(
    "agent_tool_threads_abandoned", "Threads that still execute work of runs that have ended."
)
THREADS_BUSY = _gauge("agent_tool_threads_busy", "Threads that execute tools, models and nodes.")
THREADS_LIMIT = _gauge("agent_tool_threads_limit", "The limit of threads.")
TASKS_ABANDONED = _gauge("agent_tool_tasks_abandoned", "Ended runs whose code still executes.")
STREAMS = _gauge("agent_stream_connections", "Readers of streams now.", AGENT)
STREAM_DISCONNECTS = _counter(
    "agent_stream_disconnects_total",
    "Readers that left before the end, or were disconnected because they did not read.",
    *(AGENT, DISCONNECT_REASON),
)
STREAM_FIRST_EVENT = _histogram(
    "agent_stream_time_to_first_event_seconds",
    "Time from the request for a stream to its first event.",
    AGENT,
    buckets=_TTFT_S,
)
TASKS_QUEUED = _gauge("agent_tasks_queued", "Background runs that wait in the store.", AGENT)
TASKS_RUNNING = _gauge("agent_tasks_running", "Background runs that execute anywhere.", AGENT)
TASK_OLDEST_AGE = _gauge(
    "agent_task_oldest_age_seconds",
    "Age of the oldest background run, queued or executing; 0 for none.",
    *(AGENT, STATE),
)
TASKS_UNSERVABLE = _gauge(
    "agent_tasks_unservable", "Queued background runs of agents that are not served."
)
TASK_ATTEMPTS = _counter(
    "agent_task_attempts_total",
    "Attempts at background runs that ended here; handed_over: another process owns the run.",
    *(AGENT, ATTEMPT_OUTCOME),
)
TASK_RECOVERED = _counter(
    "agent_task_recovered_total",
    "Background runs that were requeued: their process died or hung, or could not store the"
    " result.",
    AGENT,
)
JOURNAL_AGE = _gauge(
    "agent_journal_age_seconds",
    "Age of the oldest entry of a background run that is not written to the store; 0 for none.",
)
STORE_FREE = _gauge(
    "agent_store_free_bytes", "Free space on the disk of the store, if it is a file."
)
STORE_RESERVE = _gauge(
    "agent_store_reserve_bytes", "With less free space, the service refuses new background runs."
)
REJECTED = _counter(
    "agent_requests_rejected_total", "Requests refused before any work was done.", REFUSAL
)
READY = _gauge("agent_ready", "1 if a readiness check passes.", CHECK)
LOOP_LAG = _histogram(
    "agent_event_loop_lag_seconds", "Delay of timers on the event loop.", buckets=_LAG_S
)
LOOP_BLOCKED = _counter("agent_event_loop_blocked_total", "Times that code blocked the event loop.")
TELEMETRY_ERRORS = _counter(
    "agent_telemetry_errors_total", "Faults of a part of the telemetry, by part.", SINK
)
LABEL_OVERFLOW = _counter(
    "agent_telemetry_label_overflow_total", "Label values counted as _other, by label.", LABEL
)
SPANS_DROPPED = _counter(
    "agent_telemetry_spans_dropped_total", "Spans that were not delivered.", DROP
)
LOGS_DROPPED = _counter(
    "agent_log_records_dropped_total", "Log lines lost because nobody read them."
)
HTTP_DURATION = _histogram(
    "http_server_request_duration_seconds",
    "Time of one HTTP request, to the last byte of its answer.",
    *(ROUTE, METHOD, STATUS),
    buckets=_HTTP_S,
)

METRICS: tuple[Metric, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Metric)
)
