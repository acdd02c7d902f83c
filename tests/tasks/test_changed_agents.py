"""A run that goes on in another version of its agent, as in a rolling deploy."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Send

from app.runs.events import RunBeganAnew
from tests import fakes
from tests.service import Served, served, until
from tests.streams.reading import names_of
from tests.tasks.background import ended, events, submit, url_in
from tests.tasks.test_restart import looks_and_naps, napped
from tests.telemetry.watched import Log, parsed, recorded


@pytest.fixture
def log() -> Iterator[Log]:
    with recorded("info") as lines:
        yield lines


class Shop:
    """Builds versions of one agent over the same model and tools."""

    def __init__(self) -> None:
        self.desk = fakes.ToolDesk(60.0)
        self.model = fakes.ScriptedModel(script=looks_and_naps)

    def version(self, kind: str, hands: str = "tools", **options: Any) -> Any:
        """A graph whose tools are in a node of that name, or an agent of another kind."""
        tools = self.desk.tools()
        if kind in fakes.KINDS:
            return fakes.build(kind, self.model, tools)
        build: Any = {"edges": _edges, "sends": _sends, "inner": _inner}[kind]
        return build(self.model, tools, hands, **options)


def _thinks(model: BaseChatModel, tools: Sequence[BaseTool]) -> Any:
    bound = model.bind_tools(tools)

    async def think(state: fakes.GraphState) -> dict[str, Any]:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    return think


def _edges(model: BaseChatModel, tools: list[BaseTool], hands: str, **options: Any) -> Any:
    graph = StateGraph(fakes.GraphState)
    graph.add_node("think", _thinks(model, tools))
    graph.add_node(hands, ToolNode(tools))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", tools_condition, {"tools": hands, END: END})
    graph.add_edge(hands, "think")
    return graph.compile(**options)


def _sends(model: BaseChatModel, tools: list[BaseTool], hands: str) -> Any:
    def call(state: fakes.GraphState) -> Any:
        message = state["messages"][-1]
        calls = message.tool_calls if isinstance(message, AIMessage) else []
        return [Send(hands, {"messages": state["messages"]}) for _ in calls[:1]] or END

    graph = StateGraph(fakes.GraphState)
    graph.add_node("think", _thinks(model, tools))
    graph.add_node(hands, ToolNode(tools))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", call, [hands, END])
    graph.add_edge(hands, "think")
    return graph.compile()


def _waits(model: BaseChatModel, tools: list[BaseTool], last: str) -> Any:
    """The last node waits for a desk, which is done at once, and for the tools."""

    async def desk(state: fakes.GraphState) -> dict[str, Any]:
        return {}

    graph = StateGraph(fakes.GraphState)
    graph.add_node("desk", desk)
    graph.add_node("think", _thinks(model, tools))
    graph.add_node("tools", ToolNode(tools))
    graph.add_node(last, _thinks(model, tools))
    graph.add_edge(START, "desk")
    graph.add_edge(START, "think")
    graph.add_edge("think", "tools")
    graph.add_edge(["desk", "tools"], last)
    return graph.compile()


def _inner(model: BaseChatModel, tools: list[BaseTool], hands: str) -> Any:
    graph = StateGraph(fakes.GraphState)
    graph.add_node("whole", _edges(model, tools, hands))
    graph.add_edge(START, "whole")
    return graph.compile()


async def cut(desk: Served, tools: fakes.ToolDesk, **body: Any) -> str:
    """Have a run accepted, and leave it in its second tool."""
    task_id = await submit(desk, include_steps=True, **body)
    await until(partial(napped, tools, 1), 20)
    return task_id


@pytest.mark.parametrize(
    ("before", "after", "nodes"),
    [
        (("edges", "tools"), ("edges", "hands"), ["tools"]),
        (("sends", "tools"), ("sends", "hands"), ["tools"]),
        (("create_agent",), ("sends", "hands"), ["tools"]),
        (("inner", "tools"), ("inner", "hands"), ["tools"]),
        (("edges", "tools"), ("inner", "tools"), ["tools"]),
        (("agent_executor",), ("create_agent",), []),
    ],
)  # fmt: skip
async def test_removed_next_node_restarts_the_run(
    before: Any, after: Any, nodes: list[str], tmp_path: Path, log: Log
) -> None:
    """A run whose next node no longer exists restarts from its input and logs it."""
    shop = Shop()
    async with served(
        {"a": shop.version(*before)}, store_url=url_in(tmp_path), log=log.source
    ) as desk:
        task_id = await cut(desk, shop.desk)
    shop.desk.seconds = 0.0
    async with served(
        {"a": shop.version(*after)}, store_url=url_in(tmp_path), log=log.source
    ) as desk:
        task = await ended(desk, task_id)
        story = await events(desk, task_id)
        known = (await desk.client.get(f"/runs/{task_id}")).json()
    result = task["result"]
    assert (task["status"], result["answer"]) == ("completed", "rested")
    assert shop.desk.started == ["look", "nap", "look", "nap"]
    assert (result["iterations"], result["tool_calls"], known["iterations"]) == (2, 2, 2)
    assert [step["tool"] for step in result["steps"]] == ["look", "nap"]
    assert [step["tool"] for step in known["steps"]] == ["look", "nap"]
    assert result["usage"]["input_tokens"] == 10 * 5  # what the first attempt cost stays
    [line] = log.of("run_began_anew")
    assert (line["level"], line["run_id"], line["nodes"]) == ("warning", task_id, nodes)
    assert [event.id for event in story] == list(range(1, len(story) + 1))
    assert (names_of(story).count("run"), names_of(story)[-1]) == (2, "end")


async def test_removed_node_of_a_join_restarts_the_run(tmp_path: Path) -> None:
    """A run that has come half the way to a removed node restarts."""
    tools = fakes.ToolDesk(60.0)
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("nap"))
    first, second = (_waits(model, tools.tools(), last) for last in ("last", "end"))
    async with served({"a": first}, store_url=url_in(tmp_path)) as desk:
        task_id = await cut(desk, tools)
    tools.seconds = 0.0
    async with served({"a": second}, store_url=url_in(tmp_path)) as desk:
        task = await ended(desk, task_id)
        [anew] = desk.facts_of(RunBeganAnew)
    assert anew.nodes == ("last",)
    assert (task["status"], task["result"]["answer"]) == ("completed", "done: hello: slept")
    assert tools.started == ["nap", "nap"]


async def test_restarted_run_resumes_from_its_new_steps(tmp_path: Path, log: Log) -> None:
    """A restarted run resumes from its new steps and counts from the beginning."""
    shop = Shop()
    versions = [shop.version("edges", hands) for hands in ("tools", "hands", "hands")]
    task_id = ""
    for attempt, version in enumerate(versions, start=1):
        shop.desk.seconds = 0.0 if attempt == 3 else 60.0
        async with served({"a": version}, store_url=url_in(tmp_path), log=log.source) as desk:
            task_id = task_id or await submit(desk, include_steps=True)
            if attempt == 3:
                task = await ended(desk, task_id)
            else:
                await until(partial(napped, shop.desk, attempt), 20)
    result = task["result"]
    assert shop.desk.started == ["look", "nap", "look", "nap", "nap"]
    assert (task["status"], result["iterations"]) == ("completed", 2)
    assert [step["tool"] for step in result["steps"]] == ["look", "nap"]
    assert len(log.of("run_began_anew")) == 1


@pytest.mark.parametrize("thread", [{}, {"thread_id": "t"}])
async def test_restart_restores_the_conversation(thread: dict[str, str], tmp_path: Path) -> None:
    """When a run restarts, its conversation is as it was before the run."""
    shop = Shop()
    saver: BaseCheckpointSaver[Any] = InMemorySaver()
    first = shop.version("edges", "tools", checkpointer=saver)
    async with served({"a": first}, store_url=url_in(tmp_path)) as desk:
        if thread:
            shop.desk.seconds = 0.0
            await ended(desk, await submit(desk, "before", **thread))
            shop.desk.seconds, shop.desk.started = 60.0, []
        task_id = await cut(desk, shop.desk, **thread)
    shop.desk.seconds = 0.0
    second = shop.version("edges", "hands", checkpointer=saver)
    async with served({"a": second}, store_url=url_in(tmp_path)) as desk:
        task = await ended(desk, task_id)
        [anew] = desk.facts_of(RunBeganAnew)
    assert anew.nodes == ("tools",)
    assert (task["status"], task["result"]["answer"]) == ("completed", "rested")
    assert task["result"]["iterations"] == 2
    assert shop.desk.started == ["look", "nap", "look", "nap"]
    state = await second.aget_state(
        {"configurable": {"thread_id": thread.get("thread_id", task_id)}}
    )
    questions = [message.text for message in state.values["messages"] if message.type == "human"]
    assert questions == (["before", "hello"] if thread else ["hello"])


@pytest.mark.parametrize("kind", ["edges", "create_agent"])
async def test_removed_node_that_is_not_next_is_ignored(kind: str, tmp_path: Path) -> None:
    """A run resumes from its last step if the agent has all nodes that come next."""
    shop = Shop()
    async with served({"a": shop.version(kind)}, store_url=url_in(tmp_path)) as desk:
        task_id = await cut(desk, shop.desk)
    shop.desk.seconds = 0.0
    async with served({"a": shop.version("sends")}, store_url=url_in(tmp_path)) as desk:
        task = await ended(desk, task_id)
        assert desk.facts_of(RunBeganAnew) == []
    assert task["status"] == "completed"
    assert shop.desk.started == ["look", "nap", "nap"]


@pytest.mark.parametrize("kind", ["langgraph", "create_agent"])
async def test_call_of_a_removed_tool_is_rejected(kind: str, tmp_path: Path, log: Log) -> None:
    """A call of a tool that the agent no longer has is rejected, reported and counted."""
    desk_of_tools = fakes.ToolDesk(60.0)
    model = fakes.ScriptedModel(script=looks_and_naps)
    agents = {"a": fakes.build(kind, model, desk_of_tools.tools())}
    async with served(agents, store_url=url_in(tmp_path), log=log.source) as desk:
        task_id = await cut(desk, desk_of_tools)
    fewer = [tool for tool in desk_of_tools.tools() if tool.name != "nap"]
    agents = {"a": fakes.build(kind, model, fewer)}
    async with served(agents, store_url=url_in(tmp_path), log=log.source) as desk:
        task = await ended(desk, task_id)
        samples = parsed(await desk.client.get("/metrics"))
    result = task["result"]
    assert (task["status"], result["iterations"], result["tool_calls"]) == ("completed", 2, 1)
    read = fakes.results_since_question(model.asked[-1])
    assert "nap" in read[-1].text
    assert [line["reason"] for line in log.of("tool_rejected")] == ["unknown_tool"]
    assert samples.total("agent_tool_rejected_calls_total", reason="unknown_tool") == 1
