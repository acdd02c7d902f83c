"""One stream of lines, from every writer: ours, libraries', warnings and crashes."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from app.telemetry import lines
from tests import fakes, faults
from tests.runs.test_plain import Raises, Recurses
from tests.runs.test_rendering import holding_itself, nested
from tests.telemetry.watched import Log, recorded, watched

ALWAYS = {
    "timestamp", "level", "event", "logger", "service", "version", "instance", "trace_id",
    "span_id", "run_id", "agent",
}  # fmt: skip
CANONICAL = {
    "outcome", "mode", "duration_s", "queue_wait_s", "iterations", "iteration_limit",
    "tool_calls", "tools", "tokens_in", "tokens_out", "cost_usd", "ttft_s", "timeout_phase",
    "error_type", "attempt",
}  # fmt: skip
THEIRS = logging.getLogger("somebody.elses")


@pytest.fixture
def log() -> Iterator[Log]:
    with recorded("info") as log:
        yield log


def written(log: Log, number: int = 1) -> list[dict[str, Any]]:
    """The lines, once that many have come; a thread writes them."""
    deadline = time.monotonic() + 20
    while log.text.count("\n") < number:
        assert time.monotonic() < deadline, log.text
        time.sleep(0.005)
    return log.lines


async def test_every_line_has_the_contract_fields() -> None:
    """Every line is one JSON object with the fields that the contract requires."""
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("look", turns=2))
    agents = {"a": fakes.build("create_agent", model, fakes.ToolDesk().tools())}
    async with watched(agents) as signals:
        run = (await signals.desk.ask(metadata={"ticket": "4711"})).json()
        line = await signals.log.one("run_finished", run_id=run["run_id"])
    for each in signals.log.lines:
        assert set(each) >= ALWAYS, each
        assert each["level"] in ("debug", "info", "warning", "error", "critical")
    assert set(line) >= CANONICAL
    assert (line["tools"], line["tool_calls"], line["iterations"]) == ({"look": 2}, 2, 2)
    assert (line["tokens_in"], line["tokens_out"], line["attempt"]) == (30, 15, 1)
    assert line["metadata"] == {"ticket": "4711"}
    assert 0 < line["duration_s"] < 60
    events = [each["event"] for each in signals.log.lines]
    assert "service_started" in events
    assert "service_stopped" in events
    assert events.count("run_finished") == 1
    assert {"llm_call", "tool_call", "request_finished"} <= set(events)
    assert "uvicorn.error" in {each["logger"] for each in signals.log.lines}


async def test_successful_run_is_one_line_at_info() -> None:
    """At the usual level a successful run is one line."""
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("look", turns=2))
    agents = {"a": fakes.build("create_agent", model, fakes.ToolDesk().tools())}
    async with watched(agents, level="info") as signals:
        run = (await signals.desk.ask()).json()
    assert [line["event"] for line in signals.log.of(run_id=run["run_id"])] == ["run_finished"]
    assert not signals.log.of("request_finished")


def test_line_of_a_library_has_the_same_fields(log: Log) -> None:
    """A library's line has the same fields, its own logger and no local variables."""
    hidden = "local-variable"
    try:
        raise KeyError(hidden)
    except KeyError:
        THEIRS.exception("it_failed: %s", 4711)
    (line,) = written(log)
    assert set(line) >= ALWAYS
    assert (line["event"], line["level"]) == ("it_failed: 4711", "error")
    assert line["logger"] == "somebody.elses"
    assert line["error_type"] == "KeyError"
    assert "test_logs.py" in line["error_at"][0]
    assert hidden not in log.text


def test_own_fault_has_type_and_place(log: Log) -> None:
    """A fault of our own is logged by type and place, without local variables."""
    hidden = "local-variable"
    try:
        raise ValueError(hidden)
    except ValueError as error:
        log.source.failed(lines.REQUEST_FAILED, error)
    (line,) = written(log)
    assert (line["event"], line["level"], line["error_type"]) == (
        "request_failed",
        "error",
        "ValueError",
    )
    assert hidden not in log.text


def test_warnings_are_lines(log: Log) -> None:
    """Python's warnings are lines too."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("this will go away", DeprecationWarning, stacklevel=1)
    (line,) = written(log)
    assert set(line) >= ALWAYS
    assert "this will go away" in line["event"]
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")


def test_uncaught_exception_is_one_line(log: Log) -> None:
    """An uncaught exception is one line, with type and place."""
    try:
        raise ZeroDivisionError("secret-in-exception")
    except ZeroDivisionError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    (line,) = written(log)
    assert (line["level"], line["error_type"]) == ("critical", "ZeroDivisionError")
    assert "secret-in-exception" not in log.text


@pytest.mark.parametrize("least", ["warning", "error"])
def test_level_holds_for_every_logger(least: str) -> None:
    """No line below the set level is written, from any logger."""
    with recorded(least) as log:
        log.source.log("info", lines.SERVICE_STARTED)
        THEIRS.info("too_quiet")
        logging.getLogger("uvicorn.error").info("too_quiet")
        THEIRS.error("loud_enough")
        assert [line["event"] for line in written(log)] == ["loud_enough"]


@pytest.mark.parametrize("level", ["info", "warning"])
def test_sigusr1_toggles_debug(level: str) -> None:
    """SIGUSR1 turns debug lines on; the next one restores the former level."""
    with recorded(level) as log:
        for number in range(3):
            log.source.log("debug", lines.RUN_STARTED, number=number)
            log.source.log("info", lines.SERVICE_STARTED, number=number)
            os.kill(os.getpid(), signal.SIGUSR1)
        written(log, 2)
    logged = [(x["event"], x["number"]) for x in log.lines if "number" in x]
    always = [("service_started", 0)] if level == "info" else []
    after = [("service_started", 2)] if level == "info" else []
    assert logged == [*always, ("run_started", 1), ("service_started", 1), *after]


_BUSY = """
import os, signal, threading, time
from app.telemetry import lines
from app.telemetry.logs import Log

log = Log()
log.start(json=True, level="info", version="0", instance="here", stream=open("/dev/null", "w"))

def signals():
    while True:
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

threading.Thread(target=signals, daemon=True).start()
end = time.monotonic() + 1.5
while time.monotonic() < end:
    log.log("info", lines.SERVICE_STARTED)
os.write(1, b"alive")
os._exit(0)
"""


def test_sigusr1_during_a_write_is_harmless() -> None:
    """SIGUSR1 does no harm to a process that is about to write a line."""
    ran = subprocess.run(
        [sys.executable, "-c", _BUSY], capture_output=True, timeout=60, check=False
    )
    assert ran.stdout == b"alive", ran.stderr[-300:]


UNKNOWN: dict[str, Any] = {
    "object": object(),
    "bytes": b"\xff",
    "set": {1, 2},
    "infinite": float("inf"),
    "nan": float("nan"),
    "huge": 2**80,
    "surrogate": "half \ud83d",
    "nested surrogate": {"of": "half \ud83d"},
    "exception": ValueError("x"),
    "key": {("a", 1): 2},
    "control": "a\nb\x00\x1b[31m",
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_unknown_value_loses_no_line(log: Log, kind: str) -> None:
    """A value that JSON does not know costs no line."""
    log.source.log("info", lines.SERVICE_STARTED, value=UNKNOWN[kind])
    (line,) = written(log)
    assert line["event"] == "service_started"


@pytest.mark.parametrize(
    "value",
    [10**5_000, Raises(ValueError("secret")), Raises(SystemExit(3)), Recurses(), holding_itself(),
     nested(10_000), {10**5_000: 1}],
    ids=["huge", "raises", "exits", "recurses", "holds itself", "deep", "huge key"],
)  # fmt: skip
def test_value_without_a_text_loses_no_line(log: Log, value: Any) -> None:
    """A value whose own `str` fails costs no line either."""
    log.source.log("info", lines.SERVICE_STARTED, value=value, whole="whole")
    (line,) = written(log)
    assert (line["event"], line["whole"]) == ("service_started", "whole")
    assert "secret" not in log.text


@pytest.mark.parametrize("kind", UNKNOWN)
def test_line_of_a_library_is_always_one_line(
    log: Log, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A library's line stays one line, whatever its values."""
    THEIRS.warning("said %s", UNKNOWN[kind])
    (line,) = written(log)
    assert line["event"].startswith("said ")
    assert log.text.count("\n") == 1
    assert capsys.readouterr().err == ""


def test_line_with_wrong_arguments_prints_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """A library's line whose arguments do not fit prints no traceback, and none of its values."""
    with recorded("info") as log:
        THEIRS.warning("two %s %s", "secret-in-argument")
        THEIRS.warning("the next one")
        written(log)
    assert log.lines[-1]["event"] == "the next one"
    assert "secret-in-argument" not in capsys.readouterr().err


def test_long_line_is_cut(log: Log) -> None:
    """A line is cut to a length that collectors accept."""
    THEIRS.warning("x" * 1_000_000)
    log.source.log("info", lines.SERVICE_STARTED, agents="y" * 1_000_000)
    assert all(len(json.dumps(line)) < 20_000 for line in written(log, 2))


def test_line_is_readable_on_a_terminal() -> None:
    """On a terminal a line is readable, and not JSON."""
    with recorded("info", json=False) as log:
        log.source.log(
            "warning", lines.LIMIT_REACHED, run_id="4711", agent="orders", iteration_limit=3
        )
        THEIRS.warning("something else")
        deadline = time.monotonic() + 20
        while log.text.count("\n") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    first, second = log.text.splitlines()
    for word in ("warning", "iteration_limit_reached", "orders", "4711", "iteration_limit=3"):
        assert word in first
    assert "something else" in second
    assert not first.startswith("{")


async def test_line_of_a_library_in_a_tool_has_the_run_id() -> None:
    """A line that a library writes inside a run has the run's id."""

    async def node(state: fakes.GraphState) -> dict[str, Any]:
        await asyncio.sleep(0)
        THEIRS.warning("said_inside")
        return {"messages": [AIMessage("done")]}

    async with watched({"a": faults.graph_of(node)}) as signals:
        run = (await signals.desk.ask()).json()
        line = await signals.log.one("said_inside")
    assert (line["run_id"], line["trace_id"]) == (run["run_id"], run["trace_id"])
