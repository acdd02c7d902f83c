"""Kind 1, branches: agents that work in parallel have their own turns and names."""

import asyncio
import operator
from collections.abc import Sequence
from typing import Annotated, Any

import pytest
from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import RetryPolicy, Send

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import completed, limited
from tests.ecosystem.model import Asked, Line, Model, call, calls, last_result
from tests.ecosystem.reports import SubAgent
from tests.ecosystem.serves import serves
from tests.ecosystem.toolbox import asking, loop_of, said_by, weather

PACES = [(0.0, 0.0, 0.0), (0.0, 0.01, 0.03), (0.03, 0.01, 0.0)]
paces = pytest.mark.parametrize("pace", PACES, ids=["even", "rising", "falling"])


def station(name: str, turns: int, delay_s: float = 0.0) -> Any:
    """An agent that looks up the weather in so many turns one after the other."""
    looks = [calls(call("weather", city=f"{name}{n}")) for n in range(turns)]
    model = Model(script=[*looks, f"{name} is done"], model_name=name, delay_s=delay_s)
    return create_agent(model, [weather], name=name)


class Parts(MessagesState):
    """What the branches found."""

    parts: Annotated[list[str], operator.add]


async def join(state: Parts) -> dict[str, Any]:
    """One answer of all parts."""
    return {"messages": [AIMessage(", ".join(sorted(state["parts"])))]}


@serves("langgraph", "`Send`", "Branches count side by side; `iterations` is their longest chain.")
@paces
async def test_sent_branches_are_counted(serve: Serve, pace: Sequence[float]) -> None:
    """Three branches of one, two and three turns are three iterations and six tool calls."""

    def build() -> Any:
        agents = {n: station(n, t, d) for n, t, d in zip("abc", (1, 2, 3), pace, strict=True)}

        async def work(state: Any) -> dict[str, Any]:
            return {"parts": [await said_by(agents[state])]}

        graph = StateGraph(Parts)
        graph.add_node("work", work)
        graph.add_node("join", join)
        graph.add_conditional_edges(START, lambda _: [Send("work", p) for p in "abc"], ["work"])
        graph.add_edge("work", "join")
        return graph.compile()

    await serve(build, completed("a is done, b is done, c is done", 3, 6))


@serves(
    "langgraph", "agents as parallel nodes", "Each has turns of its own; the longest chain counts."
)
@paces
async def test_parallel_agent_nodes_are_counted(serve: Serve, pace: Sequence[float]) -> None:
    """Agents may be nodes of one step, before a node with turns of its own."""

    def build() -> Any:
        graph = StateGraph(MessagesState)
        for name, turns, delay_s in zip("abc", (2, 1, 2), pace, strict=True):
            graph.add_node(name, station(name, turns, delay_s))
            graph.add_edge(START, name)
        boss = Model(script=[lambda asked: _boss(asked)], model_name="boss")
        graph.add_node("boss", create_agent(boss, [weather], name="boss"))
        graph.add_edge(["a", "b", "c"], "boss")
        return graph.compile()

    def _boss(asked: Asked) -> Line:
        asks = "sun in Rome" not in asked.text
        return calls(call("weather", city="Rome")) if asks else "all is done"

    await serve(build, completed("all is done", 3, 6))


@paces
async def test_two_agents_in_one_tool(serve: Serve, pace: Sequence[float]) -> None:
    """Two agents that one tool asks at the same time: each has its own name and counts."""

    def build() -> Any:
        one, two = station("one", 2, pace[0]), station("two", 1, pace[2])

        @tool
        async def both(text: str) -> str:
            """Ask two stations at the same time."""
            return " and ".join(await asyncio.gather(said_by(one, text), said_by(two, text)))

        model = Model(script=[calls(call("both", text="look")), last_result()])
        return create_agent(model, [both])

    answer = "I read: one is done and two is done"
    for run in await serve(build, completed(answer, 1, 1)):
        assert run.sub_agents == [SubAgent("one", 2, 2, "both"), SubAgent("two", 1, 1, "both")]
        if run.mode == "stream":
            assert (run.spoken("one"), run.spoken("two")) == ("one is done", "two is done")


@serves("deepagents", "`task`, several at once", "Each sub-agent has its own turns, name and text.")
@pytest.mark.parametrize("delay_s", [0.0, 0.02])
async def test_tasks_of_a_deep_agent(serve: Serve, delay_s: float) -> None:
    """Two tasks in one turn are two tool calls of the deep agent; their work is their own."""

    def boss(asked: Asked) -> Line:
        if len(asked.results) == 2:
            return " / ".join(asked.results)
        return calls(
            call("task", description="look twice", subagent_type="north"),
            call("task", description="look once", subagent_type="south"),
        )

    def sub(name: str, turns: int, delay: float) -> dict[str, Any]:
        looks = [calls(call("weather", city=f"{name}{n}")) for n in range(turns)]
        model = Model(script=[*looks, f"{name} is done"], model_name=name, delay_s=delay)
        return {
            "name": name,
            "description": f"Looks {name}.",
            "system_prompt": f"You are {name}.",
            "model": model,
            "tools": [weather],
        }

    def build() -> Any:
        subagents: Any = [sub("north", 2, delay_s), sub("south", 1, 0.0)]
        return create_deep_agent(model=Model(script=[boss]), tools=[], subagents=subagents)

    for run in await serve(build, completed("north is done / south is done", 1, 2)):
        assert run.sub_agents == [SubAgent("north", 2, 2, "task"), SubAgent("south", 1, 1, "task")]
        assert run.outcomes == {"task": ["completed"] * 2, "weather": ["completed"] * 3}
        if run.mode == "stream":
            assert (run.spoken("north"), run.spoken("south")) == ("north is done", "south is done")


async def test_branches_at_the_limit(serve: Serve) -> None:
    """No branch makes more than N + 1 calls, and none takes the counts above the limit."""
    models = {name: Model(script=[_endless], model_name=name) for name in "abc"}

    def build() -> Any:
        async def work(state: Any) -> dict[str, Any]:
            agent = create_agent(models[state], [weather], name=state)
            return {"parts": [await said_by(agent)]}

        graph = StateGraph(Parts)
        graph.add_node("work", work)
        graph.add_node("join", join)
        graph.add_conditional_edges(START, lambda _: [Send("work", p) for p in "abc"], ["work"])
        graph.add_edge("work", "join")
        return graph.compile()

    for run in await serve(build, limited(None, 2, 6), max_iterations=2):
        assert [len(run.calls_of(model)) for model in models.values()] == [3, 3, 3]


def _endless(asked: Asked) -> Line:
    return calls(call("weather", city="Bonn")) if asked.tools else "no more"


async def test_retried_node_is_one_turn(serve: Serve) -> None:
    """Repeats by a node's RetryPolicy are attempts of one turn."""

    def build() -> Any:
        model = Model(script=[calls(call("weather", city="Bonn")), last_result()])
        ask = asking(model.bind_tools([weather]))
        tries = iter(range(9))

        async def flaky(state: MessagesState) -> dict[str, Any]:
            update: dict[str, Any] = await ask(state)
            if next(tries) < 2:
                raise ConnectionError("after the model had answered")
            return update

        policy = RetryPolicy(max_attempts=3, initial_interval=0.01, jitter=False)
        return loop_of(flaky, [weather], retry_policy=policy).compile()

    await serve(build, completed("I read: sun in Bonn", 1, 1))


async def test_turns_around_branches_add_up(serve: Serve) -> None:
    """Turns before and after branches add up with the longest of them."""

    def build() -> Any:
        leads = Model(script=[_leads], model_name="lead").bind_tools([weather])

        async def work(state: Any) -> dict[str, Any]:
            return {"parts": [await said_by(station(state, {"x": 1, "y": 2}[state]))]}

        def spread(state: Parts) -> Any:
            last = state["messages"][-1]
            if isinstance(last, AIMessage) and last.tool_calls:
                return "tools"
            return [Send("work", part) for part in "xy"]

        graph = StateGraph(Parts)
        graph.add_node("ask", asking(leads))
        graph.add_node("tools", ToolNode([weather]))
        graph.add_edge(START, "ask")
        graph.add_edge("tools", "ask")
        graph.add_node("work", work)
        graph.add_node("join", join)
        graph.add_conditional_edges("ask", spread, ["tools", "work"])
        graph.add_edge("work", "join")
        return graph.compile()

    def _leads(asked: Asked) -> Line:
        return "spread" if asked.results else calls(call("weather", city="Bonn"))

    await serve(build, completed("x is done, y is done", 3, 4))
