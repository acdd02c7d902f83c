"""Failures of models, agents and tools: precise 500s that leak nothing."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool, ToolException, tool

from app.runs.events import ModelCallFinished, ToolCallFinished
from app.runs.model import CallOutcome, Outcome
from tests import fakes, faults
from tests.faults import ARGUMENT, QUESTION, SECRET
from tests.service import Served, served

pytestmark = pytest.mark.asyncio(loop_scope="module")
kinds = pytest.mark.parametrize("kind", fakes.KINDS)
ORDER = {"order": ARGUMENT}


class RateLimited(Exception):
    """What a provider's client raises at status 429."""

    status_code = 429


MODEL_ERRORS: dict[str, Exception] = {
    "runtime": RuntimeError(SECRET),
    "timeout": TimeoutError(SECRET),
    "rate-limited": RateLimited(SECRET),
    "value": ValueError(SECRET),
    "key": KeyError(SECRET),
}
TOOL_ERRORS: dict[str, Callable[[], BaseException]] = {
    "value": lambda: ValueError(SECRET),
    "timeout": lambda: TimeoutError(SECRET),
    "group": lambda: ExceptionGroup(SECRET, [ValueError(SECRET)]),
    "recursion": lambda: RecursionError(SECRET),
    "memory": lambda: MemoryError(SECRET),
    "stop": lambda: StopAsyncIteration(SECRET),
    "cancelled": lambda: asyncio.CancelledError(SECRET),
}
AGENT_ERRORS: dict[str, Any] = {
    "node": lambda: faults.graph_that_raises(RuntimeError(SECRET)),
    "node-timeout": lambda: faults.graph_that_raises(TimeoutError(SECRET)),
    "node-group": lambda: faults.graph_that_raises(ExceptionGroup(SECRET, [OSError(SECRET)])),
    "node-cancelled": faults.graph_with_cancelled_node,
    "middleware": lambda: faults.agent_whose_middleware_raises(RuntimeError(SECRET)),
    "middleware-timeout": lambda: faults.agent_whose_middleware_raises(TimeoutError(SECRET)),
    "parser": lambda: faults.executor_whose_parser_raises(RuntimeError(SECRET)),
    "parser-timeout": lambda: faults.executor_whose_parser_raises(TimeoutError(SECRET)),
}
ASKING: dict[str, Any] = {
    "node-asks": lambda: faults.graph_that_asks(keeps_state=True),
    "tool-asks": faults.agent_whose_tool_asks,
}


@tool
def sync_broken(order: str = "") -> str:
    """Raise, on a thread."""
    raise ValueError(SECRET)


@tool
async def spoken(order: str = "") -> str:
    """Raise what was written for the model."""
    raise ToolException("ask for a number")


def _with_tool(kind: str, tools: list[BaseTool], name: str, parallel: int = 1) -> Any:
    script = fakes.calls_then_answers(name, ORDER, parallel=parallel)
    return fakes.build(kind, fakes.ScriptedModel(script=script), tools)


def _one_bad_sibling(kind: str) -> Any:
    def script(messages: Any) -> Any:
        if fakes.results_since_question(messages):
            return AIMessage("done")
        good, bad = fakes.asks("nap", {}), fakes.asks("broken", {}, number=1)
        return AIMessage("", tool_calls=[*bad.tool_calls, *good.tool_calls])

    tools = fakes.ToolDesk(seconds=0.2).tools()
    return fakes.build(kind, fakes.ScriptedModel(script=script), tools)


def _agents() -> dict[str, Any]:
    agents = {name: build() for name, build in {**AGENT_ERRORS, **ASKING}.items()}
    unreadable = OutputParserException(SECRET, llm_output=SECRET)
    agents["unreadable"] = faults.executor_whose_parser_raises(unreadable)
    for kind in fakes.KINDS:
        for name, error in MODEL_ERRORS.items():
            agents[f"model-{name}-{kind}"] = fakes.build(
                kind, faults.model(error=error), fakes.ToolDesk().tools()
            )
        for name, raised in TOOL_ERRORS.items():
            agents[f"tool-{name}-{kind}"] = _with_tool(
                kind, [faults.raising_tool(raised())], "look"
            )
        agents[f"tool-sync-{kind}"] = _with_tool(kind, [sync_broken], "sync_broken")
        agents[f"tool-spoken-{kind}"] = _with_tool(kind, [spoken], "spoken")
        agents[f"tool-parallel-{kind}"] = _with_tool(kind, [sync_broken], "sync_broken", 3)
        agents[f"siblings-{kind}"] = _one_bad_sibling(kind)
    return agents


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk() -> AsyncIterator[Served]:
    async with served(_agents()) as service:
        yield service
        service.books_balance()


async def fails(desk: Served, agent: str, code: str, **body: Any) -> httpx.Response:
    """Ask and get a 500 that has its code and nothing else."""
    response = await desk.ask(QUESTION, agent=agent, **body)
    assert response.status_code == 500, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["status"], problem["code"]) == (500, code)
    assert problem["retryable"] is (code == "model_failed")
    assert response.headers["x-run-id"] == problem["run_id"]
    assert "server-timing" in response.headers
    for secret in (SECRET, QUESTION, ARGUMENT, "Traceback", "Error(", ".py", "order desk"):
        assert secret not in response.text
        assert secret not in str(response.headers)
    end = desk.end_of(problem["run_id"])
    assert (end.outcome.value, end.code) == (problem["outcome"], code)
    assert (end.iterations, end.tool_calls) == (problem["iterations"], problem["tool_calls"])
    assert str(end.phase) == problem["phase"]
    assert sum(problem["timings"].values()) == pytest.approx(end.duration_s, abs=0.001)
    return response


@kinds
@pytest.mark.parametrize("name", MODEL_ERRORS)
async def test_exception_of_a_model_is_model_failed(desk: Served, kind: str, name: str) -> None:
    """A model that raises is `model_failed`, whatever it raises; a TimeoutError is no 504."""
    problem = (await fails(desk, f"model-{name}-{kind}", "model_failed")).json()
    assert (problem["outcome"], problem["phase"]) == ("failed", "llm")
    calls = [f for f in desk.facts_of(ModelCallFinished) if f.run_id == problem["run_id"]]
    expected = CallOutcome.RATE_LIMITED if name == "rate-limited" else CallOutcome.FAILED
    assert [call.outcome for call in calls] == [expected]


@pytest.mark.parametrize("name", AGENT_ERRORS)
async def test_exception_of_an_agent_is_agent_failed(desk: Served, name: str) -> None:
    """An agent that raises is `agent_failed`, whatever it raises; a TimeoutError is no 504."""
    problem = (await fails(desk, name, "agent_failed")).json()
    assert (problem["outcome"], problem["phase"]) == ("failed", "other")
    assert desk.end_of(problem["run_id"]).error is not None


async def test_unparsable_answer_is_model_failed(desk: Served) -> None:
    """An answer that the agent's own parser cannot read is `model_failed`."""
    problem = (await fails(desk, "unreadable", "model_failed")).json()
    assert problem["outcome"] == "failed"


@pytest.mark.parametrize("name", ASKING)
async def test_interrupt_is_interrupted(desk: Served, name: str) -> None:
    """An interrupt is `interrupted`, which a retry would not help."""
    problem = (await fails(desk, name, "interrupted")).json()
    assert problem["outcome"] == "interrupted"


async def test_call_that_asks_for_a_human_is_interrupted(desk: Served) -> None:
    """The call of a tool that asked for a human ends as `interrupted`."""
    run_id = (await fails(desk, "tool-asks", "interrupted")).json()["run_id"]
    calls = [f for f in desk.facts_of(ToolCallFinished) if f.run_id == run_id]
    assert [call.outcome for call in calls] == [CallOutcome.INTERRUPTED]


@kinds
@pytest.mark.parametrize("name", [*TOOL_ERRORS, "sync"])
async def test_exception_of_a_tool_ends_no_run(desk: Served, kind: str, name: str) -> None:
    """A tool that raises does not end the run, and nobody reads its text."""
    response = await desk.ask("q", agent=f"tool-{name}-{kind}", include_steps=True)
    assert response.status_code == 200, response.text
    run = response.json()
    assert (run["outcome"], run["iterations"], run["tool_calls"]) == ("completed", 1, 1)
    step = run["steps"][0]
    assert step["outcome"] == "tool_error"
    assert step["result"].startswith(f"Tool {step['tool']} failed: ")
    assert run["answer"] == f"done: q: {step['result']}"
    assert SECRET not in response.text


@kinds
async def test_model_reads_a_tool_exception_only(desk: Served, kind: str) -> None:
    """The model reads the text of a ToolException and of no other exception."""
    run = (await desk.ask("q", agent=f"tool-spoken-{kind}")).json()
    assert run["answer"] == "done: q: Tool spoken failed: ToolException: ask for a number"


@kinds
async def test_each_failing_parallel_tool_is_an_error(desk: Served, kind: str) -> None:
    """Parallel tools that all raise are an error each."""
    run = (await desk.ask(agent=f"tool-parallel-{kind}", include_steps=True)).json()
    assert (run["outcome"], run["tool_calls"]) == ("completed", 3)
    assert [step["outcome"] for step in run["steps"]] == ["tool_error"] * 3


@kinds
async def test_exception_of_a_tool_stops_no_sibling(desk: Served, kind: str) -> None:
    """A tool that raises does not stop the parallel ones."""
    run = (await desk.ask(agent=f"siblings-{kind}", include_steps=True)).json()
    outcomes = {step["tool"]: (step["outcome"], step["result"]) for step in run["steps"]}
    assert outcomes["nap"] == ("completed", "slept")
    assert outcomes["broken"] == ("tool_error", "Tool broken failed: ValueError")


async def test_failed_run_releases_its_slot(desk: Served) -> None:
    """A failed run holds nothing."""
    await fails(desk, "node", "agent_failed")
    assert desk.service.runner.admission.running == 0
    assert not desk.service.runner.in_flight
    assert desk.facts[-1].outcome is Outcome.FAILED  # type: ignore[union-attr]


_EXITING = """
import asyncio, sys
from langchain_core.tools import tool
from tests import fakes
from tests.service import served

@tool("look")
def on_thread() -> str:
    "Leave, as a command line does."
    sys.exit(3)

@tool("look")
async def on_loop() -> str:
    "Leave, as a command line does."
    sys.exit(3)

async def main() -> None:
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("look"))
    tools = {"thread": on_thread, "loop": on_loop}
    agents = {name: fakes.build("create_agent", model, [tool]) for name, tool in tools.items()}
    async with served(agents) as desk:
        for name in agents:
            print(name, (await desk.ask(agent=name)).status_code, flush=True)

asyncio.run(main())
"""


async def test_sys_exit_in_a_tool_ends_nothing() -> None:
    """A tool that calls sys.exit() ends neither its run nor the service."""
    ran = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _EXITING, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(ran.communicate(), 60)
    lines = [line for line in output.decode().splitlines() if line[:5] in ("threa", "loop ")]
    assert (lines, ran.returncode) == (["thread 200", "loop 200"], 0)
