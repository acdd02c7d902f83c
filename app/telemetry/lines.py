"""Every log event as data: its constant name, its level and its meaning."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """One kind of log line."""

    event: str
    level: str
    help: str


RUN_FINISHED = Line(
    "run_finished",
    "info; warning for iteration_limit and timeout; error for failed",
    "The canonical line, one for each run: outcome, counts, timings, tokens.",
)
RUN_STARTED = Line("run_started", "debug", "A run has a slot and starts to execute.")
RUN_HANDED_OVER = Line(
    "run_handed_over",
    "info",
    "This process handed a background run over; another process, or this one after a restart, "
    "executes it.",
)
RUN_BEGAN_ANEW = Line(
    "run_began_anew",
    "warning",
    "A background run starts again from its input, since the served agent lacks its next `nodes`.",
)
CONVERSATION_NOT_STORED = Line(
    "conversation_not_stored",
    "warning",
    "A run was answered, but the store did not take its conversation: its thread lacks the answer.",
)
TASK_RECOVERED = Line(
    "task_recovered",
    "warning",
    "A background run was taken over from a process that died, hung or could not store its result.",
)
TASK_LOST = Line(
    "task_lost", "error", "A background run was ended: every process that executed it died."
)
STORE_UNREACHABLE = Line(
    "store_unreachable",
    "warning",
    "The store does not answer; until `store_back` the service refuses requests that need it.",
)
STORE_BACK = Line("store_back", "info", "The store answers again.")
RUN_TIMED_OUT = Line("run_timed_out", "warning", "A run missed its deadline, in this `phase`.")
LIMIT_REACHED = Line(
    "iteration_limit_reached",
    "warning",
    "A run was stopped at its `limit`: iterations or model_calls.",
)
LLM_CALL = Line("llm_call", "debug; warning on failure", "A model call ended.")
TOOL_CALL = Line("tool_call", "debug", "A tool call ended.")
TOOL_REJECTED = Line(
    "tool_rejected", "warning", "The model asked for a tool call that cannot be executed."
)
WORK_ABANDONED = Line(
    "tool_thread_abandoned", "warning", "A run ended while some of its work did not stop."
)
REQUEST_FINISHED = Line("request_finished", "debug", "An HTTP request was answered.")
REQUEST_FAILED = Line("request_failed", "error", "A fault of the service itself; answered 500.")
UNHANDLED = Line("unhandled_error", "error", "A task failed, and nothing awaits it.")
LOOP_BLOCKED = Line(
    "event_loop_blocked", "warning", "Code at `where` blocked the event loop, and so every run."
)
FACTORY_SLOW = Line(
    "factory_slow",
    "warning",
    "The start waits for the factory of `agent`, which has not returned yet.",
)
FACTORY_ENDED = Line(
    "factory_ended",
    "error",
    "A resource that the factory of `agent` opened failed or was cancelled; tools may fail now.",
)
FACTORY_NOT_CLOSED = Line(
    "factory_not_closed",
    "error",
    "A resource that the factory of `agent` opened failed to close, or did not close in time.",
)
SERVICE_STARTED = Line("service_started", "info", "The service takes requests.")
SERVICE_DRAINING = Line("service_draining", "info", "The service received a signal to stop.")
SERVICE_STOPPED = Line("service_stopped", "info", "The service has stopped.")
DEMO_IN_USE = Line(
    "demo_model_in_use", "warning", "The demo model answers: no language model is configured."
)
NO_MODEL = Line(
    "agent_without_model",
    "warning",
    "No model was found in `agent`: its answer at a limit may be a fixed sentence.",
)
CONTENT_LEAVES = Line(
    "content_leaves", "warning", "The switch `how` of LangChain sends prompts to other services."
)
UNKNOWN_SETTING = Line("unknown_setting", "warning", "A WATCHKEEPER_ variable that is no setting.")
LEVEL_CHANGED = Line("log_level_changed", "info", "SIGUSR1 turned debug lines on or off.")
TELEMETRY_DEGRADED = Line("telemetry_degraded", "warning", "A part of the telemetry failed.")

LINES = tuple(value for value in list(globals().values()) if isinstance(value, Line))
