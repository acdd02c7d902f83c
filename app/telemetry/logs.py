"""Facts as log lines: one JSON object a line, or a readable form on a terminal.

Nothing that a caller, a model or a tool said stands in a line: ids, counts, names and the types
of exceptions do. Lines of libraries and of uvicorn go through the same formatter.
"""

import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO, assert_never

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from app.runs.deadline import current
from app.runs.events import (
    Event,
    FirstToken,
    IterationCounted,
    IterationLimitReached,
    ModelCallFinished,
    ModelCallRetried,
    ModelCallStarted,
    RunFinished,
    RunQueued,
    RunStarted,
    SubAgentFinished,
    SubAgentStarted,
    ToolCallFinished,
    ToolCallRejected,
    ToolCallStarted,
    WorkAbandoned,
)
from app.runs.model import CallOutcome, Outcome, PhaseKind

_LEVELS = {Outcome.ITERATION_LIMIT: "warning", Outcome.TIMEOUT: "warning", Outcome.FAILED: "error"}
# Libraries whose lines say what ours say already, or quote what callers sent.
_QUIET = ("httpx", "httpx2", "httpcore", "openai", "uvicorn.access", "asyncio", "langsmith")


def start(*, json: bool, level: str, version: str, stream: TextIO = sys.stdout) -> None:
    """Send every line of this process, ours and the libraries', through one formatter."""
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        _timestamp,
        _Service(version),
        _run_id,
        structlog.stdlib.ExtraAdder(allow=()),
    ]
    render: list[Processor] = (
        [_where_it_failed, structlog.processors.JSONRenderer(ensure_ascii=False)]
        if json
        else [_where_it_failed, structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*shared[:-1], structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def say(level: str, event: str, **fields: Any) -> None:
    """One line about the service itself; `event` is a constant name."""
    getattr(structlog.get_logger("watchkeeper"), level)(event, **fields)


def failed(event: str, error: BaseException) -> None:
    """An error that nothing else answered: its type and place, never its text."""
    say("error", event, error_type=_type(error), error_at=_frames(error))


def write(fact: Event) -> None:
    """The sink: one fact, at most one line."""
    about = {"run_id": fact.run_id, "agent": fact.agent}
    match fact:
        case RunFinished():
            say(_LEVELS.get(fact.outcome, "info"), "run_finished", **about, **_canonical(fact))
            if fact.outcome is Outcome.TIMEOUT:
                say("warning", "run_timed_out", **about, phase=str(fact.phase))
        case RunStarted():
            say("debug", "run_started", **about, mode=fact.mode, timeout_s=fact.timeout_s)
        case ModelCallFinished():
            failed = fact.outcome is not CallOutcome.COMPLETED
            fields = {"outcome": fact.outcome, "error_type": _type(fact.error)}
            say("warning" if failed else "debug", "llm_call", **about, **fields)
        case ToolCallFinished():
            fields = {"outcome": fact.outcome, "error_type": _type(fact.error)}
            say("debug", "tool_call", **about, call_id=fact.call_id, **fields)
        case IterationLimitReached():
            limit = fact.iteration_limit
            say("warning", "iteration_limit_reached", **about, iteration_limit=limit)
        case WorkAbandoned():
            counts = {"threads": fact.threads, "tasks": fact.tasks}
            say("warning", "tool_thread_abandoned", **about, **counts)
        case RunQueued() | ModelCallStarted() | FirstToken() | IterationCounted():
            pass
        case ToolCallRejected():
            say("warning", "tool_rejected", **about, reason=fact.reason)
        case ToolCallStarted() | ModelCallRetried() | SubAgentStarted() | SubAgentFinished():
            pass
        case _:
            assert_never(fact)


def _canonical(fact: RunFinished) -> dict[str, Any]:
    """The one line that says most of what an operator asks of a run."""
    return {
        "outcome": fact.outcome,
        "code": fact.code,
        "mode": fact.mode,
        "duration_s": round(fact.duration_s, 4),
        "queue_wait_s": round(fact.timings.queue_s, 4),
        "llm_s": round(fact.timings.llm_s, 4),
        "tools_s": round(fact.timings.tools_s, 4),
        "iterations": fact.iterations,
        "iteration_limit": fact.iteration_limit,
        "tool_calls": fact.tool_calls,
        "tools": dict(fact.tools),
        "tokens_in": fact.usage.input_tokens,
        "tokens_out": fact.usage.output_tokens,
        "cost_usd": fact.cost_usd,
        "ttft_s": None if fact.ttft_s is None else round(fact.ttft_s, 4),
        "timeout_phase": _timeout_phase(fact),
        "error_type": _type(fact.error),
        "error_at": _frames(fact.error),
        "metadata": dict(fact.metadata),
    }


def _timeout_phase(fact: RunFinished) -> PhaseKind | None:
    return fact.phase.kind if fact.phase and fact.outcome is Outcome.TIMEOUT else None


def _type(error: BaseException | None) -> str | None:
    return None if error is None else type(error).__name__


def _frames(error: BaseException | None) -> list[str] | None:
    """Where it was raised, as `file:line function`: never the text, never local variables."""
    if error is None:
        return None
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]


def _timestamp(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    line["timestamp"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return line


class _Service:
    def __init__(self, version: str) -> None:
        self._fields = {"service": "watchkeeper", "version": version}

    def __call__(self, _: WrappedLogger, __: str, line: EventDict) -> EventDict:
        line.update(self._fields)
        return line


def _run_id(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    run = current.get()
    if run is not None:
        line.setdefault("run_id", run.run_id)
    return line


def _where_it_failed(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """A library's exception keeps its type and place and loses its text."""
    told = line.pop("exc_info", None)
    error = sys.exc_info()[1] if told is True else told[1] if isinstance(told, tuple) else told
    if isinstance(error, BaseException):
        line["error_type"], line["error_at"] = _type(error), _frames(error)
    return line
