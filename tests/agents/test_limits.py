"""Every kind of agent stops at its limit, and each stops in the same way."""

import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from app.agents.final_answer import fixed_sentence
from app.runs.events import (
    Event,
    IterationCounted,
    IterationLimitReached,
    ModelCallFinished,
    ModelCallStarted,
    ToolCallRejected,
)
from app.settings import AgentSettings
from tests import fakes, loops
from tests.service import served

pytestmark = pytest.mark.waits

LIMITS = (1, 3, 10)
SHAPES = [(kind, 1) for kind in loops.ALL] + [(kind, 3) for kind in fakes.KINDS]


def desk() -> list[Any]:
    return fakes.ToolDesk().tools()


async def limited(agent: Any, limit: int, stopping: str = "generate", **body: Any) -> Any:
    """Ask an agent that is stopped at its limit; the answer and the facts."""
    async with served({"a": agent}, max_iterations=limit, early_stopping=stopping) as service:
        response = await service.ask(**body)
        assert response.status_code == 200, response.text
        result = response.json()
        assert not [s for s in loops.LIBRARY_SENTENCES if s in result["answer"]]
        service.books_balance()
        return result, service


@pytest.mark.parametrize(("kind", "parallel"), SHAPES)
async def test_generate_asks_for_an_answer_after_the_limit(kind: str, parallel: int) -> None:
    """An endless agent is asked for its answer in call N + 1, after N turns."""
    models = {n: loops.asks_times(kind, n, parallel=parallel) for n in LIMITS}
    async for limit, body, facts in each_limit(kind, models, "generate"):
        assert body["answer"] == loops.ANSWER
        assert len(models[limit].asked) == limit + 1
        assert body["tool_calls"] == limit * parallel
        assert len([f for f in facts if isinstance(f, ModelCallStarted)]) == limit + 1
        counted = [(f.iteration, f.tool_calls) for f in facts if isinstance(f, IterationCounted)]
        assert counted == [(n + 1, parallel) for n in range(limit)]
        assert body["usage"]["input_tokens"] == 10 * (limit + 1)


@pytest.mark.parametrize(("kind", "parallel"), SHAPES)
async def test_force_answers_with_a_fixed_sentence(kind: str, parallel: int) -> None:
    """With `force` no call follows the N turns, and a fixed sentence is the answer."""
    models = {n: loops.asks_times(kind, math.inf, parallel=parallel) for n in LIMITS}
    async for limit, body, _ in each_limit(kind, models, "force"):
        assert body["answer"] == fixed_sentence(limit)
        assert len(models[limit].asked) == limit
        assert body["tool_calls"] == limit * parallel


async def each_limit(
    kind: str, models: dict[int, fakes.ScriptedModel], stopping: str
) -> AsyncIterator[tuple[int, Any, list[Event]]]:
    """Agents that are stopped after 1, 3 and 10 turns: what each answers, and its facts."""
    agents = {f"a{n}": loops.build(kind, model, desk()) for n, model in models.items()}
    own = {f"a{n}": AgentSettings(max_iterations=n) for n in models}
    async with served(agents, agents=own, early_stopping=stopping) as service:
        for limit in models:
            body = (await service.ask(agent=f"a{limit}")).json()
            assert body["outcome"] == "iteration_limit"
            assert (body["iterations"], body["iteration_limit"]) == (limit, limit)
            yield limit, body, [f for f in service.facts if f.run_id == body["run_id"]]
        service.books_balance()


async def every_kind(
    times: float, limit: int
) -> AsyncIterator[tuple[str, fakes.ScriptedModel, Any, list[Event]]]:
    """Agents of every kind whose models ask so many times: what each answers, and its facts."""
    models = {kind: loops.asks_times(kind, times) for kind in loops.ALL}
    agents = {kind: loops.build(kind, model, desk()) for kind, model in models.items()}
    async with served(agents, max_iterations=limit) as service:
        for kind, model in models.items():
            body = (await service.ask(agent=kind)).json()
            yield kind, model, body, [f for f in service.facts if f.run_id == body["run_id"]]


async def test_answer_before_the_limit_is_completed() -> None:
    """An agent that answers one turn before its limit has completed."""
    async for kind, model, body, facts in every_kind(2, 3):
        assert (body["outcome"], body["answer"]) == ("completed", loops.ANSWER), kind
        assert (body["iterations"], len(model.asked)) == (2, 3), kind
        assert not [fact for fact in facts if isinstance(fact, IterationLimitReached)], kind


async def test_answer_due_at_the_limit_is_limited() -> None:
    """An agent that would have answered next has still reached its limit."""
    async for kind, model, body, _ in every_kind(3, 3):
        assert (body["outcome"], body["iterations"]) == ("iteration_limit", 3), kind
        assert len(model.asked) == 4, kind


async def test_last_call_without_text_gets_the_fixed_sentence() -> None:
    """A model that asks for tools even in the last call gets the fixed sentence as its answer."""
    async for kind, model, body, _ in every_kind(math.inf, 2):
        assert body["answer"] == fixed_sentence(2), kind
        assert (body["iterations"], body["tool_calls"]) == (2, 2), kind
        assert len(model.asked) == 3, kind


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("kind", loops.ALL)
async def test_last_call_has_results_and_no_tools(kind: str, parallel: int) -> None:
    """The last call keeps the agent's instructions, has every result, offers no tools."""
    model = loops.asks_times(kind, 2, arguments={"order": "77"}, parallel=parallel)
    await limited(loops.build(kind, model, desk()), 2)
    last = model.asked[-1]
    assert last[0].text.startswith(loops.INSTRUCTIONS[kind])
    assert isinstance(last[0], SystemMessage) is (kind != "react")
    assert len([m for m in last if m.text.startswith(loops.INSTRUCTIONS[kind])]) == 1
    assert "hello" in "".join(message.text for message in last)
    if kind == "react":
        assert last[0].text.count("order 77 shipped") == 1
        assert "order 77 shipped" in last[-1].text
        return
    assert all(offered for offered in model.offered[:-1])
    assert model.offered[-1] == []
    results = [m for m in last if isinstance(m, ToolMessage)]
    call_ids = [c["id"] for m in last if isinstance(m, AIMessage) for c in m.tool_calls]
    assert len(call_ids) == 2 * parallel
    assert [result.tool_call_id for result in results] == call_ids


async def test_loop_without_a_model_gets_the_fixed_sentence() -> None:
    """A loop without a LangChain model still ends, with the fixed sentence."""
    calls: list[int] = []

    async def think(state: fakes.GraphState) -> dict[str, Any]:
        calls.append(len(state["messages"]))
        call = {"name": "look", "args": {}, "id": f"c{len(calls)}", "type": "tool_call"}
        return {"messages": [AIMessage("", tool_calls=[call])]}

    body, _ = await limited(thinking(think), 2)
    assert (body["outcome"], body["answer"]) == ("iteration_limit", fixed_sentence(2))
    assert (body["iterations"], len(calls)) == (2, 2)


async def test_hidden_model_is_asked_for_the_last_answer() -> None:
    """A model that no walk through the graph finds is asked for the last answer too."""
    model = loops.asks_times("langgraph", 2)

    class Thinker:
        def __init__(self) -> None:
            self.hidden = model.bind_tools(desk())

        async def think(self, state: fakes.GraphState) -> dict[str, Any]:
            return {"messages": [await self.hidden.ainvoke(state["messages"])]}

    body, _ = await limited(thinking(Thinker().think), 2)
    assert (body["outcome"], body["answer"]) == ("iteration_limit", loops.ANSWER)
    assert len(model.asked) == 3


def thinking(think: Any) -> Any:
    """A graph of a node that thinks and a node of tools."""
    graph = StateGraph(fakes.GraphState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode(desk()))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", tools_condition)
    graph.add_edge("tools", "think")
    return graph.compile()


@pytest.mark.parametrize("stopping", ["generate", "force"])
async def test_turns_without_the_format_count(stopping: str) -> None:
    """A ReAct agent that never follows the format is stopped as any other: such turns count."""
    chats = loops.replies("I would rather chat about the weather.")
    models = {n: fakes.ScriptedModel(script=chats) for n in LIMITS}
    async for limit, body, facts in each_limit("react", models, stopping):
        assert body["tool_calls"] == 0
        assert len(models[limit].asked) == limit + (stopping == "generate")
        assert [f.tool_calls for f in facts if isinstance(f, IterationCounted)] == [0] * limit
        assert not [f for f in facts if isinstance(f, ToolCallRejected)]
        assert not [s for s in loops.LIBRARY_SENTENCES if s in body["answer"]]
        assert "Invalid Format" not in body["answer"]


async def test_parse_errors_and_calls_count_alike() -> None:
    """Turns with a parse error and turns with a tool call count alike."""
    turns = iter(["weather", "\nAction: look\nAction Input: 1", "weather"])
    model = fakes.ScriptedModel(
        script=lambda _: AIMessage(next(turns, f"Final Answer: {loops.ANSWER}"))
    )
    body, service = await limited(loops.react(model, desk()), 3)
    assert (body["iterations"], body["tool_calls"]) == (3, 1)
    assert [fact.tool_calls for fact in service.facts_of(IterationCounted)] == [0, 1, 0]
    assert body["answer"] == loops.ANSWER


async def test_limit_is_one_fact() -> None:
    """Reaching the limit is one fact; `test_leaks` reads the log lines made of it."""
    model = loops.asks_times("create_agent", math.inf)
    body, service = await limited(fakes.build("create_agent", model, desk()), 2)
    [fact] = service.facts_of(IterationLimitReached)
    assert (fact.run_id, fact.agent, fact.iteration_limit) == (body["run_id"], "a", 2)


async def test_nothing_runs_after_the_limit() -> None:
    """No tool runs and no model is asked once the answer is given."""
    desk_ = fakes.ToolDesk()
    models = {kind: loops.asks_times(kind, math.inf) for kind in loops.ALL}
    agents = {kind: loops.build(kind, model, desk_.tools()) for kind, model in models.items()}
    async with served(agents, max_iterations=2) as service:
        for kind in agents:
            await service.ask(agent=kind)
        for _ in range(3):
            assert (await service.client.get("/health")).status_code == 200
    assert [len(model.asked) for model in models.values()] == [3] * 4
    assert desk_.started == ["look"] * 8


async def test_own_recursion_limit_is_obeyed() -> None:
    """A recursion limit that a user bound to a graph is obeyed, and ends as at the limit."""
    model = loops.asks_times("create_agent", 3)
    agent = fakes.build("create_agent", model, desk()).with_config(recursion_limit=5)
    body, _ = await limited(agent, 10)
    assert (body["outcome"], body["iterations"]) == ("iteration_limit", 3)
    assert body["answer"] == loops.ANSWER


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_partly_failed_turn_is_one_iteration(kind: str) -> None:
    """A turn whose parallel calls partly fail is one iteration, and is complete at the limit."""

    @tool
    async def look(order: str = "1") -> str:
        """Fail for order 1."""
        if order == "1":
            raise ValueError(order)
        return "shipped"

    def both(number: int) -> AIMessage:
        calls = [
            {"name": name, "args": {"order": order}, "id": f"{number}-{order}", "type": "tool_call"}
            for name, order in (("look", "1"), ("look", "2"), ("no_such_tool", "3"))
        ]
        return AIMessage("", tool_calls=calls)

    model = fakes.ScriptedModel(script=lambda messages: both(len(messages)))
    body, service = await limited(fakes.build(kind, model, [look]), 2)
    assert (body["iterations"], body["tool_calls"]) == (2, 4)
    assert len(model.asked) == 3
    assert len(service.facts_of(ModelCallFinished)) == 3
