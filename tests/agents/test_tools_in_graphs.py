"""Tools that use their graph's state, and nodes that call tools themselves."""

import asyncio
import threading
import time
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId, tool
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import InjectedState, ToolNode
from langgraph.types import Command, interrupt

from app.runs.events import ToolCallFinished, ToolCallStarted
from app.runs.model import CallOutcome
from tests import fakes
from tests.service import Served, served
from watchkeeper import remaining

pytestmark = pytest.mark.waits


@tool
async def state_reader(state: Annotated[dict[str, Any], InjectedState]) -> str:
    """Read the conversation."""
    return f"{len(state['messages'])} messages"


@tool
def sync_state_reader(state: Annotated[dict[str, Any], InjectedState]) -> str:
    """Read the conversation on a thread."""
    return f"{len(state['messages'])} messages"


@tool
async def config_reader(config: RunnableConfig) -> str:
    """Read the thread's id."""
    return f"thread {bool(config['configurable']['thread_id'])}"


@tool
def sync_config_reader(config: RunnableConfig) -> str:
    """Read the thread's id on a thread."""
    return f"thread {bool(config['configurable']['thread_id'])}"


@tool
async def id_reader(call_id: Annotated[str, InjectedToolCallId]) -> str:
    """Read the call's own id."""
    return f"id {call_id}"


@tool
async def runtime_reader(runtime: ToolRuntime) -> str:
    """Read everything."""
    return f"{len(runtime.state['messages'])} of {runtime.tool_call_id}"


@tool
async def clock() -> str:
    """Read the deadline."""
    return f"{remaining():.4f}"


@tool
def sync_clock() -> str:
    """Read the deadline on a thread."""
    return f"{remaining():.4f} {threading.current_thread().name}"


class Reader(BaseTool):
    """A hand-written tool that wants its graph's state."""

    name: str = "hand_written_reader"
    description: str = "Read the conversation."

    def _run(self, state: Annotated[dict[str, Any], InjectedState]) -> str:
        return f"{len(state['messages'])} messages"


async def answer_of(service: Served, **body: Any) -> str:
    """The answer to a question, which must be one."""
    response = await service.ask("q", **body)
    assert response.status_code == 200, response.text
    return str(response.json()["answer"])


@pytest.mark.parametrize("kind", ["create_agent", "langgraph"])
@pytest.mark.parametrize(
    ("probe", "result"),
    [
        (state_reader, "2 messages"),
        (sync_state_reader, "2 messages"),
        (config_reader, "thread True"),
        (sync_config_reader, "thread True"),
        (id_reader, "id call-0"),
        (runtime_reader, "2 of call-0"),
        (Reader(), "2 messages"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_injected_arguments_are_passed(kind: str, probe: BaseTool, result: str) -> None:
    """A wrapped tool still gets its state, its config, its call's id and its runtime."""
    model = fakes.ScriptedModel(script=fakes.calls_then_answers(probe.name))
    async with served({"a": fakes.build(kind, model, [probe])}) as service:
        assert await answer_of(service) == f"done: q: {result}"


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_tools_know_the_deadline(kind: str) -> None:
    """A tool may ask for the remaining time, in async code and on a thread."""
    for probe in (clock, sync_clock):
        model = fakes.ScriptedModel(script=fakes.calls_then_answers(probe.name))
        async with served({"a": fakes.build(kind, model, [probe])}) as service:
            began = time.monotonic()
            answer = await answer_of(service, timeout=9.0)
            remaining_s = float(answer.split()[2])
            assert 9.0 - (time.monotonic() - began) < remaining_s < 9.0
            assert probe is clock or " watchkeeper-work-" in answer


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_failing_sibling_stops_no_other(kind: str) -> None:
    """Of two parallel calls one fails; the other finishes and the model reads both."""
    desk = fakes.ToolDesk()
    calls: list[Any] = [
        {"name": name, "args": {}, "id": f"call-{name}", "type": "tool_call"}
        for name in ("broken", "look")
    ]

    def script(messages: Any) -> AIMessage:
        results = fakes.results_since_question(messages)
        if not results:
            return AIMessage("", tool_calls=calls)
        return AIMessage(" | ".join(sorted(result.text for result in results)))

    model = fakes.ScriptedModel(script=script)
    async with served({"a": fakes.build(kind, model, desk.tools())}) as service:
        answer = await answer_of(service)
        assert answer == "Tool broken failed: ValueError | order 1 shipped"
        outcomes = {fact.outcome for fact in service.facts_of(ToolCallFinished)}
        assert outcomes == {CallOutcome.TOOL_ERROR, CallOutcome.COMPLETED}


async def test_command_of_a_tool_steers_the_graph() -> None:
    """A tool that answers with a Command still steers its graph."""

    @tool
    async def finish(call_id: Annotated[str, InjectedToolCallId]) -> Any:
        """Finish."""
        return Command(update={"messages": [ToolMessage("steered", tool_call_id=call_id)]})

    model = fakes.ScriptedModel(script=fakes.calls_then_answers("finish"))
    async with served({"a": create_agent(model, [finish])}) as service:
        assert await answer_of(service) == "done: q: steered"


async def test_interrupt_of_a_tool_ends_the_run_as_interrupted() -> None:
    """A tool that interrupts ends the run as interrupted, not as failed."""

    @tool
    async def approve() -> str:
        """Ask."""
        return str(interrupt("may I?"))

    model = fakes.ScriptedModel(script=fakes.calls_then_answers("approve"))
    async with served({"a": create_agent(model, [approve])}) as service:
        response = await service.ask("q")
        assert (response.status_code, response.json()["code"]) == (500, "interrupted")


def graph_that_calls(probe: BaseTool, through: str) -> Any:
    """A graph whose sync node calls a tool itself, or through a ToolNode of its own."""

    def node(state: fakes.GraphState) -> dict[str, Any]:
        if through == "tool":
            return {"messages": [AIMessage(str(probe.invoke({})))]}
        message = fakes.asks(probe.name, {})
        results = ToolNode([probe]).invoke({"messages": [HumanMessage("q"), message]})
        return {"messages": [AIMessage(results["messages"][-1].text)]}

    graph = StateGraph(fakes.GraphState)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    graph.add_edge("node", END)
    return graph.compile()


OVER = threading.Event()


@tool
def sync_nap() -> str:
    """Hang on a thread."""
    OVER.wait(30)
    return "slept"


@pytest.mark.parametrize("through", ["tool", "ToolNode"])
async def test_sync_node_may_call_a_tool(through: str) -> None:
    """A sync node may call a tool itself: it knows the deadline, and the call is a fact."""
    async with served({"a": graph_that_calls(sync_clock, through)}) as service:
        began = time.monotonic()
        response = await service.ask("q", timeout=9.0)
        assert response.status_code == 200, response.text
        remaining_s = float(response.json()["answer"].split()[0])
        assert 9.0 - (time.monotonic() - began) < remaining_s < 9.0
        assert response.json()["tool_calls"] == 1
        assert [fact.tool for fact in service.facts_of(ToolCallStarted)] == ["sync_clock"]


@pytest.mark.parametrize("through", ["tool", "ToolNode"])
async def test_hanging_tool_of_a_sync_node_is_named(through: str) -> None:
    """A tool that hangs in a sync node is named in the 504, which comes in time."""
    OVER.clear()
    async with served({"a": graph_that_calls(sync_nap, through)}) as service:
        asking = asyncio.ensure_future(service.ask("q"))
        await service.times_out("a", "tool:sync_nap")
        problem = (await asking).json()
        assert not OVER.is_set()
        OVER.set()
        assert (problem["status"], problem["phase"]) == (504, "tool:sync_nap")


@pytest.mark.parametrize("through", ["tool", "ToolNode"])
async def test_exception_of_a_tool_in_a_sync_node_fails_the_run(through: str) -> None:
    """A tool that raises in a node's own code fails the run, without its text."""

    @tool
    def broken() -> str:
        """Raise."""
        raise ValueError("secret-in-exception")

    async with served({"a": graph_that_calls(broken, through)}) as service:
        response = await service.ask("q")
        if through == "tool":
            assert (response.status_code, response.json()["code"]) == (500, "agent_failed")
        else:
            assert response.json()["answer"] == "Tool broken failed: ValueError"
        assert "secret" not in response.text
        (fact,) = service.facts_of(ToolCallFinished)
        assert fact.outcome is CallOutcome.TOOL_ERROR
