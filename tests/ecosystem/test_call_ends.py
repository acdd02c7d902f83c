"""Kind 9: a call that the agent cancels ends at that moment, with its own duration."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call, wrap_tool_call
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import RetryPolicy

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import completed, failed
from tests.ecosystem.model import Model, call, calls, last_result
from tests.ecosystem.reports import Run, assert_agree
from tests.ecosystem.served import MODES, serving
from tests.ecosystem.serves import serves
from tests.ecosystem.toolbox import asking

# Nobody waits for so long: whatever takes it was given up.
LONG_S = 300.0
# A call is given up, and then the run goes on for at least so long.
GIVEN_UP_S, GOES_ON_S = 0.05, 0.6
# How long an attempt may take: enough for one that works, on a busy machine too.
TRY_S = 1.5


def slow() -> Model:
    """A model that takes for ever."""
    return Model(script=["too late"], model_name="slow", delay_s=LONG_S)


@tool
async def crawl(city: str) -> str:
    """Take for ever."""
    await asyncio.sleep(LONG_S)
    return "too late"


async def go_on() -> str:
    """What the run does after it has given a call up."""
    await asyncio.sleep(GOES_ON_S)
    return "The real answer"


def node(work: Callable[[], Any]) -> Any:
    """A graph of one node, whose answer this is."""

    async def run(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(await work())]}

    graph = StateGraph(MessagesState)
    graph.add_node("run", run)
    graph.add_edge(START, "run")
    return graph.compile()


def waits_for_a_model() -> Any:
    """A model for which a node waits only so long."""

    async def work() -> str:
        try:
            await asyncio.wait_for(slow().ainvoke("go"), GIVEN_UP_S)
        except TimeoutError:
            return await go_on()
        raise AssertionError("it takes for ever")

    return node(work)


def races_two_models() -> Any:
    """Two models in a race, of which the slower one is cancelled."""

    async def work() -> str:
        quick = Model(script=["quick"], model_name="quick")
        racing = [asyncio.create_task(model.ainvoke("go")) for model in (quick, slow())]
        _, late = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
        for task in late:
            task.cancel()
        return await go_on()

    return node(work)


def times_out_in_a_scope() -> Any:
    """A model in a scope with a time limit, read as a stream."""

    async def work() -> str:
        try:
            async with asyncio.timeout(GIVEN_UP_S):
                async for _ in slow().astream("go"):
                    pass
        except TimeoutError:
            return await go_on()
        raise AssertionError("it takes for ever")

    return node(work)


def waits_in_wrap_model_call() -> Any:
    """A middleware that waits only so long for the first model, then asks another."""
    answers = Model(script=["The real answer"], model_name="quick", delay_s=GOES_ON_S / 6)

    @wrap_model_call
    async def hurry(request: Any, handler: Any) -> Any:
        try:
            return await asyncio.wait_for(handler(request), GIVEN_UP_S)
        except TimeoutError:
            await go_on()
            return await handler(request.override(model=answers))

    return create_agent(slow(), [], middleware=[hurry])


MODELS = [
    waits_for_a_model, races_two_models, times_out_in_a_scope, waits_in_wrap_model_call,
]  # fmt: skip


def ended_early(run: Run, name: str) -> None:
    """The span of a call that was given up ended before the run went on, and says how."""
    (span,) = [span for span in run.spans if span.name.endswith(f" {name}")]
    outcome = span.attributes.get("agent.call.outcome") or span.attributes["agent.tool.outcome"]
    assert outcome == "cancelled"
    assert run.root.end_s - span.end_s > GOES_ON_S / 2


@pytest.mark.parametrize("build", MODELS)
async def test_cancelled_model_call_ends_at_once(serve: Serve, build: Callable[[], Any]) -> None:
    """A model call that the agent cancelled ends at that moment, as cancelled."""
    for run in await serve(build, completed("The real answer")):
        ended_early(run, "slow")
        timings = run.body["timings"]
        assert timings["other_s"] > GOES_ON_S / 2


def waits_for_a_tool() -> Any:
    """A middleware that waits only so long for a tool."""

    @wrap_tool_call
    async def hurry(request: Any, handler: Any) -> Any:
        try:
            return await asyncio.wait_for(handler(request), GIVEN_UP_S)
        except TimeoutError:
            await go_on()
            return ToolMessage("gave up", tool_call_id=request.tool_call["id"])

    model = Model(script=[calls(call("crawl", city="Bonn")), last_result()])
    return create_agent(model, [crawl], middleware=[hurry])


def waits_in_a_node() -> Any:
    """A node that calls a tool by itself, and waits only so long."""
    model = Model(script=[calls(call("crawl", city="Bonn")), last_result()])

    async def act(state: MessagesState) -> dict[str, Any]:
        last = state["messages"][-1]
        assert isinstance(last, AIMessage)
        try:
            await asyncio.wait_for(crawl.ainvoke(last.tool_calls[0]), GIVEN_UP_S)
        except TimeoutError:
            await go_on()
        return {"messages": [ToolMessage("gave up", tool_call_id=str(last.tool_calls[0]["id"]))]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", asking(model.bind_tools([crawl])))
    graph.add_node("tools", act)
    graph.add_edge(START, "ask")
    graph.add_conditional_edges("ask", tools_condition)
    graph.add_edge("tools", "ask")
    return graph.compile()


def waits_in_a_tool() -> Any:
    """A tool that asks another one, and waits only so long."""

    @tool
    async def patient(city: str) -> str:
        """Ask the one that crawls."""
        try:
            return str(await asyncio.wait_for(crawl.ainvoke({"city": city}), GIVEN_UP_S))
        except TimeoutError:
            await go_on()
            return "gave up"

    model = Model(script=[calls(call("patient", city="Bonn")), last_result()])
    return create_agent(model, [patient])


@pytest.mark.parametrize("build", [waits_for_a_tool, waits_in_a_node, waits_in_a_tool])
async def test_cancelled_tool_call_ends_at_once(serve: Serve, build: Callable[[], Any]) -> None:
    """A tool call that the agent cancelled ends at that moment, as cancelled."""
    for run in await serve(build, completed("I read: gave up", 1, 1)):
        ended_early(run, "crawl")


@serves("langgraph", "`timeout` of a node", "Its calls end with it: 500 `agent_failed`.")
async def test_timed_out_node_ends_its_call(serve: Serve) -> None:
    """A node that took too long ends the run, and its call ends with it."""

    def build() -> Any:
        graph = StateGraph(MessagesState)
        graph.add_node("ask", asking(slow()), timeout=GIVEN_UP_S)
        graph.add_edge(START, "ask")
        return graph.compile()

    for run in await serve(build, failed("agent_failed", retryable=False)):
        (span,) = [span for span in run.spans if span.operation == "chat"]
        assert span.attributes["agent.call.outcome"] == "cancelled"


async def test_each_attempt_of_a_tool_node_is_a_call(serve: Serve) -> None:
    """Each attempt of a tool node is a call of its own, which ends when its attempt does."""

    def build() -> Any:
        tries = iter(range(9))

        @tool
        async def station(city: str) -> str:
            """Ask a station."""
            await asyncio.sleep(LONG_S if next(tries) < 2 else 0)
            return f"sun in {city}"

        model = Model(script=[calls(call("station", city="Bonn")), last_result()])
        graph = StateGraph(MessagesState)
        policy = RetryPolicy(
            max_attempts=3, initial_interval=GOES_ON_S, jitter=False, retry_on=lambda _: True
        )
        graph.add_node("ask", asking(model.bind_tools([station])))
        graph.add_node("tools", ToolNode([station]), timeout=TRY_S, retry_policy=policy)
        graph.add_edge(START, "ask")
        graph.add_conditional_edges("ask", tools_condition)
        graph.add_edge("tools", "ask")
        return graph.compile()

    for run in await serve(build, completed("I read: sun in Bonn", 1, 3)):
        assert run.outcomes == {"station": ["cancelled", "cancelled", "completed"]}
        spans = sorted(run.own_tools, key=lambda span: span.start_s)
        for attempt, after in pairwise(spans):
            assert after.start_s - attempt.end_s > GOES_ON_S / 2


def hangs_in_a_tool() -> Any:
    """A run that gave a model up, and then hangs in a tool."""

    @wrap_model_call
    async def hurry(request: Any, handler: Any) -> Any:
        try:
            await asyncio.wait_for(slow().ainvoke("go"), GIVEN_UP_S)
        except TimeoutError:
            return await handler(request)

    model = Model(script=[calls(call("crawl", city="Bonn"))])
    return create_agent(model, [crawl], middleware=[hurry])


def hangs_in_a_model() -> Any:
    """A run that gave a tool up, and then hangs in a model."""

    async def work() -> str:
        try:
            await asyncio.wait_for(crawl.ainvoke({"city": "Bonn"}), GIVEN_UP_S)
        except TimeoutError:
            return str((await slow().ainvoke("go")).text)
        raise AssertionError("it takes for ever")

    return node(work)


def hangs_in_code() -> Any:
    """A run that gave both up, and then hangs in code of its own."""

    async def work() -> str:
        waiting = [crawl.ainvoke({"city": "Bonn"}), slow().ainvoke("go")]
        tasks = [asyncio.ensure_future(each) for each in waiting]
        await asyncio.wait(tasks, timeout=GIVEN_UP_S)
        for task in tasks:
            task.cancel()
        await asyncio.sleep(LONG_S)
        return "too late"

    return node(work)


@pytest.mark.parametrize(
    ("build", "phase", "counts"),
    [
        (hangs_in_a_tool, "tool:crawl", (1, 1)),
        (hangs_in_a_model, "llm", (0, 1)),
        (hangs_in_code, "other", (0, 1)),
    ],
)
async def test_phase_is_not_a_cancelled_call(
    tmp_path: Path, build: Callable[[], Any], phase: str, counts: tuple[int, int]
) -> None:
    """`phase` names what really blocks a run at its deadline, not a cancelled call."""
    async with serving({mode: build() for mode in MODES}, tmp_path) as service:
        requests = (service.ask(mode, mode, timeout=3.0) for mode in MODES)
        runs = await asyncio.gather(*requests)
    expected = failed("timeout", *counts, outcome="timeout", retryable=True)
    assert_agree(runs, expected)
    for run in runs:
        assert run.body["phase"] == phase
        assert run.line["timeout_phase"] == phase.partition(":")[0]
