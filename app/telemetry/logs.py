"""Facts as log lines: one JSON object a line, or a readable form on a terminal.

A line has ids, counts, names and types of exceptions, and no text of callers, models or tools.
Lines of libraries and of uvicorn, warnings and crashes have the same form.
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
# Libraries whose lines repeat ours, or quote callers.
_QUIET = (
    "httpx", "httpx2", "httpcore", "httpcore2", "openai", "uvicorn.access", "asyncio", "langsmith",
    "langchain_core", "langgraph", "opentelemetry", "psycopg.pool",
)  # fmt: skip
_SERVER = ("uvicorn", "uvicorn.error", "uvicorn.access")
_LONGEST_VALUE = 1_000
_LONGEST_FIELD = 4_000
_SHORT = 12  # shorter than any key


class Log:
    """The log of a process. `start` opens it; until then its lines go nowhere."""

    def __init__(self) -> None:
        self._level = self._configured = _LEVELS["info"]
        self._writer: LineWriter | None = None
        self._write: Callable[..., Any] = lambda **_: None

    def start(
        self,
        *,
        json: bool,
        level: str,
        version: str,
        instance: str,
        stream: TextIO = sys.stdout,
        on_drop: Callable[[], None] = lambda: None,
        alone: bool = True,
    ) -> None:
        """Send every line of this process to one stream, in one form.

        If the process is not the service's `alone`, send only our own lines.
        """
        writer = LineWriter(stream, on_drop)
        common: list[Processor] = [_timestamp, _Service(version, instance), _ids, _safe]
        render: Processor = (
            structlog.processors.JSONRenderer(serializer=_dumps)
            if json
            else structlog.dev.ConsoleRenderer(colors=stream.isatty())
        )
        self._level = self._configured = _LEVELS[level]
        self._writer = writer
        self._write = _own_lines([*common, render], writer)
        if not alone:
            return
        preceding = [structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name, *common]
        _take_foreign_lines(preceding, render, writer, max(self._level, _LEVELS["info"]))
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, lambda *_: self.toggle_debug())

    def stop(self, timeout_s: float = 2.0) -> None:
        """Write the queued lines, for at most that long, and stop. Blocks."""
        if self._writer is not None:
            self._writer.close(timeout_s)

    def written(self, timeout_s: float = 2.0) -> bool:
        """Wait until the queued lines are written, at most that long. Blocks."""
        return self._writer is None or self._writer.written(timeout_s)

    def is_open(self) -> bool:
        """Whether lines are written anywhere."""
        return self._writer is not None

    def is_on(self, level: str) -> bool:
        """Whether lines of this level are written."""
        return _LEVELS[level] >= self._level

    def toggle_debug(self) -> None:
        """Turn debug lines on, or off again, without a restart."""
        debug = self._level != _LEVELS["debug"]
        self._level = _LEVELS["debug"] if debug else self._configured
        self.log("info", lines.LEVEL_CHANGED, debug=self._level == _LEVELS["debug"])

    def log(self, level: str, line: Line, **fields: Any) -> None:
        """Write one line."""
        if self.is_on(level):
            self._write(event=line.event, level=level, logger="watchkeeper", **fields)

    def failed(self, line: Line, error: BaseException, **fields: Any) -> None:
        """Log an error that no caller receives: its type and place, never its text."""
        raised = original(error)
        self.log("error", line, **fields, error_type=error_type(raised), error_at=frames(raised))

    def unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error that no task and no callback handled; asyncio would quote its text."""
        error = context.get("exception")
        self.failed(lines.UNHANDLED, error if isinstance(error, BaseException) else RuntimeError())


def error_type(error: BaseException | None) -> str | None:
    """Return the name of an exception's type."""
    return None if error is None else plain.name(type(error).__name__)


def frames(error: BaseException | None) -> list[str] | None:
    """Return where it was raised, as `file:line function`: no text, no local variables."""
    if error is None:
        return None
    found = traceback.extract_tb(error.__traceback__)[-5:]
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in found]


def _own_lines(processors: list[Processor], writer: LineWriter) -> Callable[..., None]:
    """Return a function that writes our own lines, which bypass the logging module."""

    def write(**fields: Any) -> None:
        line: Any = fields
        for process in processors:
            line = process(None, fields["level"], line)
        writer.write(f"{line}\n")

    return write


def _take_foreign_lines(
    preceding: list[Processor], render: Processor, writer: LineWriter, level: int
) -> None:
    """Send lines of libraries, Python's warnings and uncaught exceptions to the writer."""
    handler = logging.StreamHandler(writer)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*preceding, _without_text],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Otherwise logging prints a line that it cannot format, with the arguments of the line.
    logging.raiseExceptions = False
    for name in _SERVER:  # another server has already added handlers
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.captureWarnings(True)
    sys.excepthook = _crashed
    threading.excepthook = lambda args: _crashed(args.exc_type, args.exc_value, args.exc_traceback)


def _crashed(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    exc_info = (kind, error, trace) if error is not None else None
    logging.getLogger("watchkeeper").critical("crashed", exc_info=exc_info)


def _dumps(line: EventDict, **_: Any) -> str:
    try:
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # JSON in UTF-8 cannot encode it: huge numbers, lone surrogates
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
    """Add the ids of the current run and span."""
    span = get_current_span().get_span_context()
    line["trace_id"] = f"{span.trace_id:032x}" if span.is_valid else None
    line["span_id"] = f"{span.span_id:016x}" if span.is_valid else None
    run = current.get()
    line.setdefault("run_id", run.run_id if run is not None else None)
    line.setdefault("agent", None)
    return line


def _safe(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """Cut long texts, and remove anything like a key."""
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


def _without_text(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """Replace a library's exception by its type and place."""
    info = line.pop("exc_info", None)
    error = sys.exc_info()[1] if info is True else info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        line["error_type"], line["error_at"] = error_type(error), frames(error)
    return line
