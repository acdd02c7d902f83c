"""The service warns at start of everything that sends prompts and answers elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.globals import set_debug, set_verbose

from app.agents import leaks, registry
from app.runs.model import AgentInfo
from tests import fakes, loops
from tests.command import serving

TRACING = ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING", "LANGCHAIN_TRACING_V2")
QUESTION = "secret-in-question"
MODULE = """
from langchain_core.globals import set_debug
from tests import fakes, loops

set_debug(True)
model = loops.asks_times("agent_executor", 2)
loud = loops.build("agent_executor", model, fakes.ToolDesk().tools(), verbose=True)
quiet = loops.build("create_agent", loops.asks_times("create_agent", 9), fakes.ToolDesk().tools())
"""


@pytest.fixture(autouse=True)
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in TRACING:
        monkeypatch.delenv(name, raising=False)
    yield
    set_debug(False)
    set_verbose(False)


def served_as(kind: str, tools: list[Any] | None = None, **options: Any) -> dict[str, Any]:
    model = loops.asks_times(kind, 1)
    agent = loops.build(kind, model, tools or fakes.ToolDesk().tools(), **options)
    return {"orders": registry.adapt(agent, "orders", AgentInfo(name="orders", kind=""))}


@pytest.mark.parametrize("kind", loops.ALL)
def test_quiet_agent_is_not_warned_about(kind: str) -> None:
    """A quiet agent causes no warning."""
    assert list(leaks.switches(served_as(kind))) == []


@pytest.mark.parametrize(
    ("kind", "option"),
    [("agent_executor", "verbose"), ("react", "verbose"), ("create_agent", "debug")],
)
def test_verbose_agent_is_named(kind: str, option: str) -> None:
    """An agent that prints its steps is named."""
    options: dict[str, Any] = {option: True}
    [warning] = leaks.switches(served_as(kind, None, **options))
    assert "orders" in warning


@pytest.mark.parametrize("kind", loops.ALL)
def test_verbose_tool_is_named(kind: str) -> None:
    """A tool that prints its results is named, too."""
    [tool, *_] = fakes.ToolDesk().tools()
    tool.verbose = True
    [warning] = leaks.switches(served_as(kind, [tool]))
    assert "orders" in warning


@pytest.mark.parametrize(("switch", "name"), [(set_debug, "debug"), (set_verbose, "verbose")])
def test_switch_of_the_library_is_named(switch: Any, name: str) -> None:
    """The library's own switches are named."""
    switch(True)
    [warning] = leaks.switches({})
    assert name in warning


@pytest.mark.parametrize("value", ["true", "TRUE", "1"])
@pytest.mark.parametrize("variable", TRACING)
def test_tracing_is_named_by_its_variable(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing by LangSmith is named by the variable that turned it on."""
    monkeypatch.setenv(variable, value)
    [warning] = leaks.switches({})
    assert variable in warning


@pytest.mark.parametrize("value", ["", "false", "0"])
def test_tracing_that_is_off_is_not_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing that is off is not named."""
    monkeypatch.setenv("LANGSMITH_TRACING", value)
    assert list(leaks.switches({})) == []


@pytest.mark.waits
def test_service_warns_at_start(tmp_path: Path) -> None:
    """A real service logs at start what leaves it, and warns when a run reaches its limit."""
    (tmp_path / "mine.py").write_text(MODULE)
    variables = {
        "LANGSMITH_TRACING": "1",  # named, though the library itself asks for "true"
        "WATCHKEEPER_MAX_ITERATIONS": "2",
    }
    arguments = ("loud=mine:loud", "quiet=mine:quiet", "--log-format", "json")
    with serving(tmp_path, *arguments, variables=variables) as service:
        body = {"question": QUESTION}
        result = httpx.post(f"{service.url}/agents/quiet", json=body, timeout=30).json()
        service.signal()
        assert service.wait(30) == 0
        lines = list(_lines(service.out))
    assert result["outcome"] == "iteration_limit"
    leaving = [line for line in lines if line["event"] == "content_leaves"]
    assert {line["level"] for line in leaving} == {"warning"}
    causes = " / ".join(line["how"] for line in leaving)
    assert all(
        word in causes for word in ("set_debug", "agent loud is verbose", "LANGSMITH_TRACING")
    )
    assert "agent quiet" not in causes
    started = next(n for n, line in enumerate(lines) if line["event"] == "service_started")
    assert max(map(lines.index, leaving)) < started

    of_run = {line["event"]: line for line in lines if line.get("run_id") == result["run_id"]}
    assert of_run["iteration_limit_reached"]["level"] == "warning"
    assert of_run["iteration_limit_reached"]["agent"] == "quiet"
    assert of_run["run_finished"]["level"] == "warning"
    assert of_run["run_finished"]["outcome"] == "iteration_limit"
    assert not [line for line in lines if QUESTION in json.dumps(line)]


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """The log lines, among what the library's own switches print."""
    for line in file.read_text().splitlines():
        if line.startswith('{"') and '"event"' in line:
            yield json.loads(line)
