"""Facts as log lines: one JSON object a line, or a readable form on a terminal.

Nothing that a caller, a model or a tool said stands in a line: ids, counts, names and the types
of exceptions do. Lines of libraries, of uvicorn, warnings and crashes go through the same form.
"""

import asyncio
import json as json_module
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

import orjson
import structlog
from opentelemetry.trace import get_current_span
from structlog.typing import EventDict, Processor, WrappedLogger

from app.runs import plain, rendering
from app.runs.containment import original
from app.runs.deadline import current
from app.telemetry import lines, redact
from app.telemetry.lines import Line
from app.telemetry.stream import LineWriter

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# Libraries whose lines say what ours say already, or quote what callers sent.
_QUIET = (
    "httpx", "httpx2", "httpcore", "httpcore2", "openai", "uvicorn.access", "asyncio", "langsmith",
    "langchain_core", "langgraph", "opentelemetry", "psycopg.pool",
)  # fmt: skip
_SERVER = ("uvicorn", "uvicorn.error", "uvicorn.access")
_LONGEST_VALUE = 1_000
_LONGEST_FIELD = 4_000
_SHORT = 12  # shorter than any key


class _Log:
    """What is in force; set once, by `start`."""

    level = configured = _LEVELS["info"]
    writer: LineWriter | None = None
    write: Callable[..., Any] = staticmethod(lambda **_: None)


def start(
    *,
    json: bool,
    level: str,
    version: str,
    instance: str,
    stream: TextIO = sys.stdout,
    on_drop: Callable[[], None] = lambda: None,
    alone: bool = True,
) -> None:
    """Send every line of this process through one form to one stream.

    Where the process is not `alone` the service's, only our own lines are.
    """
    writer = LineWriter(stream, on_drop)
    common: list[Processor] = [_timestamp, _Service(version, instance), _ids, _safe]
    render: Processor = (
        structlog.processors.JSONRenderer(serializer=_dumps)
        if json
        else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    _Log.level = _Log.configured = _LEVELS[level]
    _Log.writer = writer
    _Log.write = _ours([*common, render], writer)
    if not alone:
        return
    _theirs([structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name, *common], render)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, lambda *_: toggle_debug())


def stop() -> None:
    """Write what is queued."""
    if _Log.writer is not None:
        _Log.writer.close()


def written(timeout_s: float = 2.0) -> bool:
    """Wait until what was said is written, at most that long. Blocks."""
    return _Log.writer is None or _Log.writer.written(timeout_s)


def is_open() -> bool:
    """Whether lines are written anywhere."""
    return _Log.writer is not None


def is_on(level: str) -> bool:
    """Whether lines of this level are written."""
    return _LEVELS[level] >= _Log.level


def toggle_debug() -> None:
    """Turn debug lines on, or off again, without a restart."""
    debug = _Log.level != _LEVELS["debug"]
    _Log.level = _LEVELS["debug"] if debug else _Log.configured
    log("info", lines.LEVEL_CHANGED, debug=_Log.level == _LEVELS["debug"])


def log(level: str, line: Line, **fields: Any) -> None:
    """Write one line."""
    if is_on(level):
        _Log.write(event=line.event, level=level, logger="watchkeeper", **fields)


def failed(line: Line, error: BaseException, **fields: Any) -> None:
    """An error that nothing else answered: its type and place, never its text."""
    raised = original(error)
    log("error", line, **fields, error_type=error_type(raised), error_at=frames(raised))


def unhandled(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What no task and no callback answered; asyncio would quote it."""
    error = context.get("exception")
    failed(lines.UNHANDLED, error if isinstance(error, BaseException) else RuntimeError())


def error_type(error: BaseException | None) -> str | None:
    """The type of an exception."""
    return None if error is None else plain.name(type(error).__name__)


def frames(error: BaseException | None) -> list[str] | None:
    """Where it was raised, as `file:line function`: never the text, never local variables."""
    if error is None:
        return None
    found = traceback.extract_tb(error.__traceback__)[-5:]
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in found]


def _ours(processors: list[Processor], writer: LineWriter) -> Callable[..., None]:
    """Our own lines take the short way: no logging module in between."""

    def write(**fields: Any) -> None:
        told: Any = fields
        for process in processors:
            told = process(None, fields["level"], told)
        writer.write(f"{told}\n")

    return write


def _theirs(before: list[Processor], render: Processor) -> None:
    """Lines of libraries, Python's warnings and what nobody caught."""
    assert _Log.writer is not None
    handler = logging.StreamHandler(_Log.writer)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*before, _where_it_failed],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(_Log.level, _LEVELS["info"]))
    # What cannot be formatted would be printed with its arguments.
    logging.raiseExceptions = False
    for name in _SERVER:  # another server than ours has set them up already
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.captureWarnings(True)
    sys.excepthook = _crashed
    threading.excepthook = lambda told: _crashed(told.exc_type, told.exc_value, told.exc_traceback)


def _crashed(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    told = (kind, error, trace) if error is not None else None
    logging.getLogger("watchkeeper").critical("crashed", exc_info=told)


def _dumps(line: EventDict, **_: Any) -> str:
    try:
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # what JSON in UTF-8 has no form for: huge numbers, halves of characters
        shown = {plain.name(key): rendering.preview(v, _LONGEST_FIELD) for key, v in line.items()}
        return json_module.dumps(shown)


def _timestamp(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line["timestamp"] = now.replace("+00:00", "Z")
    return line


class _Service:
    def __init__(self, version: str, instance: str) -> None:
        self._fields = {"service": "watchkeeper", "version": version, "instance": instance}

    def __call__(self, _: WrappedLogger, __: str, line: EventDict) -> EventDict:
        line.update(self._fields)
        return line


def _ids(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """The run and the span that the line is written in."""
    span = get_current_span().get_span_context()
    line["trace_id"] = f"{span.trace_id:032x}" if span.is_valid else None
    line["span_id"] = f"{span.span_id:016x}" if span.is_valid else None
    run = current.get()
    line.setdefault("run_id", run.run_id if run is not None else None)
    line.setdefault("agent", None)
    return line


def _safe(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """Long texts are cut, and what looks like a key is taken out."""
    for key, value in line.items():
        if key != "exc_info" and not key.startswith("_"):
            line[key] = _scrubbed(value)
    return line


def _scrubbed(value: Any, levels: int = 8) -> Any:
    if isinstance(value, str):
        return (
            redact.scrubbed(value, _LONGEST_VALUE) if len(value) > _SHORT else plain.sendable(value)
        )
    if not isinstance(value, dict | list | tuple):
        return value
    if not levels:
        return plain.type_name(value)
    if isinstance(value, dict):
        named = ((_scrubbed(plain.text(key)), inner) for key, inner in value.items())
        return {key: _scrubbed(inner, levels - 1) for key, inner in named}
    return [_scrubbed(inner, levels - 1) for inner in value]


def _where_it_failed(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """A library's exception keeps its type and place and loses its text."""
    told = line.pop("exc_info", None)
    error = sys.exc_info()[1] if told is True else told[1] if isinstance(told, tuple) else told
    if isinstance(error, BaseException):
        line["error_type"], line["error_at"] = error_type(error), frames(error)
    return line
