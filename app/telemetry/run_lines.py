"""Facts as log lines: few lines, and the one at the end of a run has most of the facts."""

from typing import Any, assert_never

from app.runs.events import (
    ConversationNotStored,
    Event,
    FirstToken,
    IterationCounted,
    IterationLimitReached,
    ModelCallFinished,
    ModelCallRetried,
    ModelCallStarted,
    RunBeganAnew,
    RunFinished,
    RunHandedOver,
    RunLost,
    RunQueued,
    RunRecovered,
    RunStarted,
    StreamClosed,
    StreamOpened,
    SubAgentFinished,
    SubAgentStarted,
    ToolCallFinished,
    ToolCallRejected,
    ToolCallStarted,
    WorkAbandoned,
)
from app.runs.model import CallOutcome, Outcome, PhaseKind
from app.telemetry import lines
from app.telemetry.logs import Log, error_type, frames

_LEVELS = {Outcome.ITERATION_LIMIT: "warning", Outcome.TIMEOUT: "warning", Outcome.FAILED: "error"}


class RunLines:
    """The sink."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def __call__(self, fact: Event) -> None:
        """Log one fact, with two lines at most."""
        about = {"run_id": fact.run_id, "agent": fact.agent}
        match fact:
            case RunFinished():
                level = _LEVELS.get(fact.outcome, "info")
                if self._log.is_on(level):
                    self._log.log(level, lines.RUN_FINISHED, **about, **_canonical(fact))
                if fact.outcome is Outcome.TIMEOUT:
                    self._log.log("warning", lines.RUN_TIMED_OUT, **about, phase=str(fact.phase))
            case RunHandedOver():
                self._log.log("info", lines.RUN_HANDED_OVER, **about, attempt=fact.attempt)
            case RunBeganAnew():
                self._log.log("warning", lines.RUN_BEGAN_ANEW, **about, nodes=list(fact.nodes))
            case RunRecovered():
                self._log.log("warning", lines.TASK_RECOVERED, **about)
            case RunLost():
                self._log.log("error", lines.TASK_LOST, **about)
            case RunStarted():
                self._log.log(
                    "debug", lines.RUN_STARTED, **about, mode=fact.mode, timeout_s=fact.timeout_s
                )
            case ModelCallFinished():
                level = "debug" if fact.outcome is CallOutcome.COMPLETED else "warning"
                if self._log.is_on(level):
                    self._log.log(level, lines.LLM_CALL, **about, **_call(fact), model=fact.model)
            case ToolCallFinished():
                if self._log.is_on("debug"):
                    self._log.log("debug", lines.TOOL_CALL, **about, **_call(fact), tool=fact.tool)
            case ToolCallRejected():
                self._log.log("warning", lines.TOOL_REJECTED, **about, reason=fact.reason)
            case IterationLimitReached():
                reached = {"iteration_limit": fact.iteration_limit, "limit": fact.limit}
                self._log.log("warning", lines.LIMIT_REACHED, **about, **reached)
            case WorkAbandoned():
                counts = {"threads": fact.threads, "tasks": fact.tasks}
                self._log.log("warning", lines.WORK_ABANDONED, **about, **counts)
            case ConversationNotStored():
                failed = {"error_type": error_type(fact.error), "error_at": frames(fact.error)}
                self._log.log("warning", lines.CONVERSATION_NOT_STORED, **about, **failed)
            case RunQueued() | ModelCallStarted() | FirstToken() | IterationCounted():
                pass
            case StreamOpened() | StreamClosed():
                pass
            case ToolCallStarted() | ModelCallRetried() | SubAgentStarted() | SubAgentFinished():
                pass
            case _:
                assert_never(fact)


def _call(fact: ModelCallFinished | ToolCallFinished) -> dict[str, Any]:
    return {
        "call_id": fact.call_id,
        "outcome": fact.outcome,
        "duration_s": round(fact.at - fact.started_at, 4),
        "error_type": error_type(fact.error),
    }


def _canonical(fact: RunFinished) -> dict[str, Any]:
    """Return the fields of the line that answers most questions about a run."""
    timed_out = fact.phase is not None and fact.outcome is Outcome.TIMEOUT
    phase: PhaseKind | None = fact.phase.kind if fact.phase and timed_out else None
    return {
        "outcome": fact.outcome,
        "code": fact.code,
        "mode": fact.mode,
        "duration_s": round(fact.duration_s, 4),
        "queue_wait_s": round(fact.stored_s + fact.timings.queue_s, 4),
        "llm_s": round(fact.timings.llm_s, 4),
        "tools_s": round(fact.timings.tools_s, 4),
        "iterations": fact.iterations,
        "iteration_limit": fact.iteration_limit,
        "limit": fact.limit,
        "refused": fact.refused,
        "tool_calls": fact.tool_calls,
        "tools": dict(fact.tools),
        "tokens_in": fact.usage.input_tokens,
        "tokens_out": fact.usage.output_tokens,
        "cost_usd": fact.cost_usd,
        "ttft_s": None if fact.ttft_s is None else round(fact.ttft_s, 4),
        "timeout_phase": phase,
        "error_type": error_type(fact.error),
        "error_at": frames(fact.error),
        "attempt": fact.attempt,
        "metadata": dict(fact.metadata),
    }
