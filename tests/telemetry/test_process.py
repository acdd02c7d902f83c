"""The command in its own process: its lines, its spans, and signals."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import command, otlp
from tests.otlp import Received
from tests.telemetry.watched import parent_of, parsed

AGENTS = """
import asyncio, logging, threading, warnings
from pathlib import Path
from langchain_core.tools import tool
from opentelemetry import trace
from tests import fakes


@tool
async def noisy() -> str:
    "Do what libraries do."
    with trace.get_tracer("somebody's client").start_as_current_span("GET /stock"):
        logging.getLogger("somebody.elses").warning("said by a library")
    warnings.warn("this will go away")
    thread = threading.Thread(target=lambda: 1 / 0, name="secret-thread")
    thread.start()
    await asyncio.sleep(0.05)
    return "done"


@tool
async def chatty() -> str:
    "Write more than a pipe and a queue can hold."
    for number in range(15_000):
        logging.getLogger("somebody.elses").warning("line %d of many, many lines", number)
    return "said"


@tool
async def waits() -> str:
    "Wait until the test says so."
    while not Path("go_on").exists():
        await asyncio.sleep(0.02)
    return "done"


def asks(name):
    model = fakes.ScriptedModel(script=fakes.calls_then_answers(name))
    tools = [noisy, chatty, waits, *fakes.ToolDesk().tools()]
    return fakes.build("create_agent", model, tools)


quick, loud, slow, many = asks("look"), asks("noisy"), asks("waits"), asks("chatty")
"""
PATIENCE = {"WATCHKEEPER_DRAIN_NOTICE_S": "0.1", "WATCHKEEPER_DRAIN_S": "30"}


@dataclass
class Record:
    """The record of one process, from its start to its end."""

    code: int = -1
    out: str = ""
    err: str = ""
    runs: list[dict[str, Any]] = field(default_factory=list)
    spans: list[Received] = field(default_factory=list)
    metrics: str = ""

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What was written to standard output."""
        return [json.loads(line) for line in self.out.splitlines()]

    def of(self, event: str) -> list[dict[str, Any]]:
        """The lines of one event."""
        return [line for line in self.lines if line["event"] == event]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """One service: some runs, debug lines for one of them, SIGTERM with one on its way."""
    here, record = tmp_path_factory.mktemp("process"), Record()
    (here / "wk_process.py").write_text(AGENTS)
    with otlp.receiver() as collector:
        variables = {
            **PATIENCE,
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "60000",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=shop,deployment.environment.name=test",
        }
        specs = [f"wk_process:{name}" for name in ("quick", "loud", "slow")]
        with command.serving(here, *specs, variables=variables) as service:
            _drive(service, record)
            record.code = service.wait(60)
        record.out, record.err = service.out.read_text(), service.err.read_text()
        record.spans = collector.spans
    return record


def _wait_for_lines(service: command.Serving, event: str, number: int = 1) -> None:
    """Until the process has written so many lines of an event."""
    deadline = time.monotonic() + 30
    while service.out.read_text().count(f'"{event}"') < number:
        assert time.monotonic() < deadline, event
        time.sleep(0.02)


def _drive(service: command.Serving, record: Record) -> None:
    with httpx.Client(base_url=service.url, timeout=30) as client, ThreadPoolExecutor(1) as pool:

        def ask(agent: str) -> None:
            record.runs.append(client.post(f"/agents/{agent}", json={"question": "q"}).json())

        ask("quick")
        for number in (1, 2):
            service.signal(signal.SIGUSR1)
            _wait_for_lines(service, "log_level_changed", number)
            ask("quick")
        ask("loud")
        record.metrics = client.get("/metrics").text
        on_its_way = pool.submit(
            httpx.post, f"{service.url}/agents/slow", json={"question": "q"}, timeout=30
        )
        while not client.get("/runs?state=running").json()["runs"]:
            assert not on_its_way.done()
            time.sleep(0.02)
        service.signal()
        _wait_for_lines(service, "service_draining")
        service.out.with_name("go_on").touch()
        record.runs.append(on_its_way.result().json())


def test_sigterm_loses_no_ended_run(record: Record) -> None:
    """After SIGTERM every ended run has its whole trace and its line."""
    assert record.code == 0
    assert len(record.runs) == 5
    for run in record.runs:
        assert run["outcome"] == "completed", run
        spans = [span for span in record.spans if span.trace_id == run["trace_id"]]
        operations = [span.operation for span in spans if span.scope == "watchkeeper"]
        assert sorted(operations) == ["chat", "chat", "execute_tool", "invoke_agent"]
        assert "SERVER" in {span.kind for span in spans}
        assert run["run_id"] in {line["run_id"] for line in record.of("run_finished")}
    assert [line["event"] for line in record.lines].count("service_stopped") == 1


def test_stdout_has_json_lines_only(record: Record) -> None:
    """Standard output has whole JSON lines only: ours, uvicorn's, libraries', warnings."""
    for line in record.lines:
        assert {"timestamp", "level", "event", "logger", "service", "instance"} <= set(line)
    loggers = {line["logger"] for line in record.lines}
    assert {"watchkeeper", "uvicorn.error", "somebody.elses", "py.warnings"} <= loggers
    events = {line["event"] for line in record.lines}
    assert {"service_started", "service_draining", "service_stopped"} <= events


def test_uncaught_exception_on_a_thread_is_a_line(record: Record) -> None:
    """An uncaught exception on a thread is a line, and no traceback on stderr."""
    assert "Traceback" not in record.err
    crashes = [line for line in record.lines if line.get("error_type") == "ZeroDivisionError"]
    assert [line["level"] for line in crashes] == ["critical"]


def test_sigusr1_turns_on_debug(record: Record) -> None:
    """SIGUSR1 gives debug lines to the runs that follow, until the next signal."""
    with_debug = {line["run_id"] for line in record.lines if line["level"] == "debug"}
    runs = [run["run_id"] in with_debug for run in record.runs]
    assert runs == [False, True, False, False, False]


def test_lines_and_spans_have_the_same_instance(record: Record) -> None:
    """Lines and spans name the same instance."""
    of_lines = {line["instance"] for line in record.lines}
    of_spans = {span.resource["service.instance.id"] for span in record.spans}
    assert len(of_lines) == 1
    assert of_lines == of_spans


def test_otel_resource_attributes_are_used(record: Record) -> None:
    """OTEL_RESOURCE_ATTRIBUTES describes the source of the spans, the service's name included."""
    for span in record.spans:
        assert span.resource["deployment.environment.name"] == "test"
        assert span.resource["service.name"] == "shop"


def test_span_of_user_code_is_a_child_of_its_tool(record: Record) -> None:
    """A span that a tool opens with OpenTelemetry's API is a child of the tool's span."""
    (client,) = [span for span in record.spans if span.name == "GET /stock"]
    parent = parent_of(client, record.spans)
    assert parent is not None
    assert parent.name == "execute_tool noisy"


def test_sdk_metrics_are_exposed(record: Record) -> None:
    """With tracing on, the SDK's own metrics are exposed beside ours and pass promtool."""
    samples = parsed(record.metrics)
    assert [name for name in samples.families if name.startswith("otel_sdk")]
    assert record.metrics.count("# TYPE http_server_request_duration_seconds ") == 1


@dataclass
class Blocked:
    """The record of a service whose standard output nobody reads."""

    slowest_s: float
    dropped: float
    code: int
    took_s: float
    err: str


@pytest.fixture(scope="module")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Blocked]:
    """A service that writes more than its pipe and its queue can hold, then SIGTERM."""
    here = tmp_path_factory.mktemp("blocked")
    (here / "wk_process.py").write_text(AGENTS)
    err = here / "stderr.log"
    with err.open("wb") as stderr:
        process = subprocess.Popen(
            [str(command.WATCHKEEPER), "serve", "--port", "0", "wk_process:many"],
            cwd=here,
            env=command.environment(PATIENCE),
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    try:
        url = command._url(process, r"on (http://127\.0\.0\.1:\d+)", err)
        command._wait_for(url)
        slowest = 0.0
        with httpx.Client(base_url=url, timeout=30) as client:
            client.post("/agent", json={"question": "q"})
            for _ in range(20):
                began = time.monotonic()
                assert client.get("/agents").status_code == 200
                slowest = max(slowest, time.monotonic() - began)
            dropped = parsed(client.get("/metrics")).total("agent_log_records_dropped_total")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(60)
        except subprocess.TimeoutExpired:
            code = -100
        yield Blocked(slowest, dropped, code, time.monotonic() - began, err.read_text())
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_unread_log_delays_nothing(blocked: Blocked) -> None:
    """A service whose log nobody reads answers as before, and counts the lost lines."""
    assert blocked.slowest_s < 10
    assert 1_000 < blocked.dropped < 15_000


def test_unread_log_does_not_block_the_stop(blocked: Blocked) -> None:
    """A service whose log nobody reads still stops in good order."""
    assert blocked.code == 0, blocked.err[-500:]
    assert blocked.took_s < 30


async def test_one_stream_under_uvicorn_factory(tmp_path: Path) -> None:
    """Under `uvicorn --factory` the log is the same one stream, down to its last line."""
    (tmp_path / "wk_process.py").write_text(AGENTS)
    uvicorn = (sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app")
    variables = {**PATIENCE, "WATCHKEEPER_SERVE": "wk_process:quick"}

    def drive() -> tuple[str, str]:
        announced = r"running on (http://127\.0\.0\.1:\d+)"
        with command.serving(
            tmp_path, command=uvicorn, variables=variables, announcement=announced
        ) as service:
            response = httpx.post(f"{service.url}/agent", json={"question": "q"}, timeout=30)
            response.raise_for_status()
            service.signal()
            service.wait(60)
            return service.out.read_text(), service.err.read_text()

    out, err = await asyncio.to_thread(drive)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["event"] for line in lines].count("run_finished") == 1
    assert "service_stopped" in {line["event"] for line in lines}
    assert "uvicorn.error" in {line["logger"] for line in lines}
    assert "Application shutdown complete" not in err
