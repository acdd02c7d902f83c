"""Kind 3: the model that works gives the last answer, with the agent's instructions."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ModelFallbackMiddleware,
    wrap_model_call,
)
from langchain_core.messages import AIMessage
from langchain_core.runnables import ConfigurableField
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph_swarm import create_handoff_tool, create_swarm

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import limited
from tests.ecosystem.model import Asked, Model, call, loops
from tests.ecosystem.reports import Run
from tests.ecosystem.serves import serves
from tests.ecosystem.toolbox import asking, down, loop_of, said_by, weather

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
LOOK = call("weather", city="Bonn")
QUESTION = "Where is the sun today?"
ROLE = "You are a traveller."


def looking(name: str) -> Model:
    """Looks the weather up for as long as it has tools, and then says who concludes."""
    return Model(script=[loops(LOOK, answer=f"{name} concludes")], model_name=name)


def last_of(run: Run, model: Model) -> Asked:
    """What the model was asked last, which is the last call of the whole run."""
    return run.calls_of(model)[-1]


async def check(serve: Serve, build: Callable[[], Any], model: Model, limit: int = 2) -> None:
    """A model looked things up until the limit, and it is the one that concludes."""
    expected = limited(f"{model.model_name} concludes", limit, limit)
    for run in await serve(build, expected, max_iterations=limit, question=QUESTION):
        last = last_of(run, model)
        assert last.tools == ()
        assert QUESTION in last.text
        assert last.text.count("sun in Bonn") == limit
        if ROLE in run.calls_of(model)[0].instructions:
            assert last.instructions == run.calls_of(model)[0].instructions


@serves(
    "langchain",
    "`ModelFallbackMiddleware` at the limit",
    "The model that works gives the last answer.",
)
async def test_fallback_gives_the_last_answer(serve: Serve) -> None:
    """The first model is down in the last call too: the fallback is asked."""
    backup = looking("backup")

    def build() -> Any:
        falling_back = ModelFallbackMiddleware(backup)
        return create_agent(down(), [weather], system_prompt=ROLE, middleware=[falling_back])

    await check(serve, build, backup)


async def test_fallback_of_a_node_gives_the_last_answer(serve: Serve) -> None:
    """A node may ask a runnable with fallbacks."""
    backup = looking("backup")

    def build() -> Any:
        bound = down().bind_tools([weather])
        model = bound.with_fallbacks([backup.bind_tools([weather])])
        return loop_of(asking(model, ROLE), [weather]).compile()

    await check(serve, build, backup)


async def test_overridden_model_gives_the_last_answer(serve: Serve) -> None:
    """A middleware that chooses the model of each request chooses it for the last one."""
    chosen = looking("chosen")

    @wrap_model_call
    async def choose(request: Any, handler: Any) -> Any:
        return await handler(request.override(model=chosen))

    def build() -> Any:
        usual = Model(script=["usual concludes"], model_name="usual")
        return create_agent(usual, [weather], system_prompt=ROLE, middleware=[choose])

    await check(serve, build, chosen)


def growing(small: Model, large: Model) -> Any:
    """An agent whose small model makes the first turn, and the large one the others."""

    @wrap_model_call
    async def grow(request: Any, handler: Any) -> Any:
        model = large if len(request.messages) > 1 else small
        return await handler(request.override(model=model))

    return create_agent(small, [weather], middleware=[grow])


async def test_larger_model_gives_the_last_answer(serve: Serve) -> None:
    """A small model makes the first turn, and a large one the others: the large one concludes."""
    small, large = looking("small"), looking("large")

    def build() -> Any:
        return growing(small, large)

    for run in await serve(build, limited("large concludes", 2, 2), max_iterations=2):
        assert (len(run.calls_of(small)), len(run.calls_of(large))) == (1, 2)


async def test_larger_model_concludes_at_a_recursion_limit(serve: Serve) -> None:
    """The model of the last turn concludes also if the library's own limit stops the agent."""
    small, large = looking("small"), looking("large")

    def build() -> Any:
        return growing(small, large).with_config(recursion_limit=4)

    for run in await serve(build, limited("large concludes", 2, 2)):
        assert (len(run.calls_of(small)), len(run.calls_of(large))) == (1, 2)


async def test_configurable_model_gives_the_last_answer(serve: Serve) -> None:
    """A config may choose one of several models."""
    other = looking("other")

    def build() -> Any:
        model = Model(script=["usual concludes"], model_name="usual")
        usual: Any = model.bind_tools([weather])
        which = ConfigurableField(id="which")
        choice = usual.configurable_alternatives(
            which, default_key="usual", other=other.bind_tools([weather])
        )
        chosen = choice.with_config(configurable={"which": "other"})
        return loop_of(asking(chosen, ROLE), [weather]).compile()

    await check(serve, build, other)


async def test_model_of_an_object_gives_the_last_answer(serve: Serve) -> None:
    """A node may be a method, whose model is an attribute of its object."""
    model = looking("held")

    class Desk:
        def __init__(self) -> None:
            self.parts = {"model": model.bind_tools([weather])}

        async def ask(self, state: MessagesState) -> dict[str, Any]:
            return {"messages": [await self.parts["model"].ainvoke(state["messages"])]}

    await check(serve, lambda: loop_of(Desk().ask, [weather]).compile(), model)


async def test_model_made_for_each_call_gives_the_last_answer(serve: Serve) -> None:
    """A node may make its model for each call."""
    model = looking("fresh")

    async def ask(state: MessagesState) -> dict[str, Any]:
        made = model.model_copy()
        return {"messages": [await made.bind_tools([weather]).ainvoke(state["messages"])]}

    await check(serve, lambda: loop_of(ask, [weather]).compile(), model)


async def test_model_of_an_earlier_node_does_not_conclude(serve: Serve) -> None:
    """A graph that asks another model first, and after each tool, does not conclude with it."""
    model = looking("main")

    def build() -> Any:
        title, critic = Model(script=["A TITLE"]), Model(script=["A REMARK"])

        async def name(state: MessagesState) -> dict[str, Any]:
            await title.ainvoke("Give it a title.")
            return {}

        async def remark(state: MessagesState) -> dict[str, Any]:
            await critic.ainvoke("What of this?")
            return {}

        graph = StateGraph(MessagesState)
        graph.add_node("name", name)
        graph.add_node("ask", asking(model.bind_tools([weather]), ROLE))
        graph.add_node("tools", ToolNode([weather]))
        graph.add_node("remark", remark)
        graph.add_edge(START, "name")
        graph.add_edge("name", "ask")
        graph.add_conditional_edges("ask", tools_condition)
        graph.add_edge("tools", "remark")
        graph.add_edge("remark", "ask")
        return graph.compile()

    await check(serve, build, model)


async def test_worker_of_a_planner_concludes(serve: Serve) -> None:
    """If a planner hands its plan to a worker, the worker concludes."""
    worker = looking("worker")

    def build() -> Any:
        plans = Model(script=["1. Look."], model_name="planner")
        graph = StateGraph(MessagesState)
        graph.add_node("planner", create_agent(plans, [], name="planner"))
        works = create_agent(worker, [weather], system_prompt=ROLE, name="worker")
        graph.add_node("worker", works)
        graph.add_edge(START, "planner")
        graph.add_edge("planner", "worker")
        return graph.compile()

    await check(serve, build, worker)


@serves(
    "langgraph-swarm",
    "`create_swarm` at the limit",
    "The active agent concludes, with its instructions.",
)
async def test_active_agent_of_a_swarm_concludes(serve: Serve) -> None:
    """The agent that is active at the limit concludes a swarm."""
    desk, pilot = Model(script=[loops("transfer_to_pilot")], model_name="desk"), looking("pilot")

    def build() -> Any:
        agents: list[Any] = [
            create_agent(desk, [create_handoff_tool(agent_name="pilot")], name="desk"),
            create_agent(pilot, [weather], system_prompt="You fly.", name="pilot"),
        ]
        return create_swarm(agents, default_active_agent="desk").compile()

    expected = limited("pilot concludes", 3, 3)
    for run in await serve(build, expected, max_iterations=3, question=QUESTION):
        last = last_of(run, pilot)
        assert (last.instructions, last.tools) == ("You fly.", ())
        assert QUESTION in last.text
        assert (len(run.calls_of(desk)), len(run.calls_of(pilot))) == (1, 3)


async def test_agent_in_a_node_concludes(serve: Serve) -> None:
    """An agent that a node of a graph asks concludes."""
    model = looking("inner")

    def build() -> Any:
        inner = create_agent(model, [weather], system_prompt=ROLE, name="inner")

        async def ask(state: MessagesState) -> dict[str, Any]:
            question = str(state["messages"][-1].text)
            return {"messages": [AIMessage(await said_by(inner, question))]}

        graph = StateGraph(MessagesState)
        graph.add_node("ask", ask)
        graph.add_edge(START, "ask")
        return graph.compile()

    await check(serve, build, model)
