"""Kind 3: the last answer is the agent's own: its model, instructions, middleware and question."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ContextEditingMiddleware,
    ModelFallbackMiddleware,
    PIIMiddleware,
    SummarizationMiddleware,
    after_agent,
    after_model,
    dynamic_prompt,
    wrap_model_call,
)
from langchain.agents.middleware.context_editing import ClearToolUsesEdit
from langchain_core.messages import AIMessage
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, create_react_agent, tools_condition
from langgraph_swarm import create_handoff_tool, create_swarm
from pydantic import BaseModel

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import limited
from tests.ecosystem.model import Asked, Line, Model, call, calls, loops
from tests.ecosystem.reports import Run
from tests.ecosystem.serves import serves
from tests.ecosystem.toolbox import asking, down, loop_of, nothing, said_by, weather

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
    "ModelFallbackMiddleware at the limit",
    "The last answer is asked of the model that works.",
)
async def test_a_fallback(serve: Serve) -> None:
    """The first model is down in the last call too: the one that works is asked."""
    backup = looking("backup")

    def build() -> Any:
        falling_back = ModelFallbackMiddleware(backup)
        return create_agent(down(), [weather], system_prompt=ROLE, middleware=[falling_back])

    await check(serve, build, backup)


async def test_a_fallback_in_a_node(serve: Serve) -> None:
    """A runnable with fallbacks, asked by a node."""
    backup = looking("backup")

    def build() -> Any:
        bound = down().bind_tools([weather])
        model = bound.with_fallbacks([backup.bind_tools([weather])])
        return loop_of(asking(model, ROLE), [weather]).compile()

    await check(serve, build, backup)


async def test_an_overridden_model(serve: Serve) -> None:
    """A middleware that chooses the model of each request chooses it for the last one."""
    chosen = looking("chosen")

    @wrap_model_call
    async def choose(request: Any, handler: Any) -> Any:
        return await handler(request.override(model=chosen))

    def build() -> Any:
        usual = Model(script=["usual concludes"], model_name="usual")
        return create_agent(usual, [weather], system_prompt=ROLE, middleware=[choose])

    await check(serve, build, chosen)


async def test_a_model_that_grows(serve: Serve) -> None:
    """A small model makes the first turn, and a large one the others: it concludes."""
    small, large = looking("small"), looking("large")

    @wrap_model_call
    async def grow(request: Any, handler: Any) -> Any:
        model = large if len(request.messages) > 1 else small
        return await handler(request.override(model=model))

    def build() -> Any:
        return create_agent(small, [weather], middleware=[grow])

    for run in await serve(build, limited("large concludes", 2, 2), max_iterations=2):
        assert (len(run.calls_of(small)), len(run.calls_of(large))) == (1, 2)


async def test_a_configurable_model(serve: Serve) -> None:
    """A model that is one of several, chosen by a config."""
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


async def test_a_model_that_an_object_has(serve: Serve) -> None:
    """A node that is a method, whose model is an attribute of its object."""
    model = looking("held")

    class Desk:
        def __init__(self) -> None:
            self.parts = {"model": model.bind_tools([weather])}

        async def ask(self, state: MessagesState) -> dict[str, Any]:
            return {"messages": [await self.parts["model"].ainvoke(state["messages"])]}

    await check(serve, lambda: loop_of(Desk().ask, [weather]).compile(), model)


async def test_a_model_made_for_each_call(serve: Serve) -> None:
    """A node that makes its model anew each time it is run."""
    model = looking("fresh")

    async def ask(state: MessagesState) -> dict[str, Any]:
        made = model.model_copy()
        return {"messages": [await made.bind_tools([weather]).ainvoke(state["messages"])]}

    await check(serve, lambda: loop_of(ask, [weather]).compile(), model)


async def test_a_model_of_a_node_before(serve: Serve) -> None:
    """A graph that asks another model first, and after each tool, is not concluded by that one."""
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


async def test_a_planner_and_a_worker(serve: Serve) -> None:
    """Where a planner hands its plan to a worker, the worker concludes."""
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


@serves("langgraph-swarm", "create_swarm", "The active agent concludes, with its instructions.")
async def test_the_active_agent_of_a_swarm(serve: Serve) -> None:
    """A swarm is concluded by the agent that is active when the limit is reached."""
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


@tool
def customer(number: str) -> str:
    """Look a customer up."""
    return "It is ann@example.com"


def _redacts() -> Any:
    return PIIMiddleware(
        "email", strategy="redact", apply_to_output=True, apply_to_tool_results=True
    )


@serves("langchain", "PIIMiddleware(strategy='redact')", "The last answer is redacted as well.")
async def test_redaction(serve: Serve) -> None:
    """At the limit, too, no address reaches the model or the caller."""
    model = Model(script=[loops(call("customer", number="1"), answer="Ask bob@example.com.")])

    def build() -> Any:
        return create_agent(model, [customer], middleware=[_redacts()])

    expected = limited("Ask [REDACTED_EMAIL].", 2, 2)
    for run in await serve(build, expected, max_iterations=2):
        assert "ann@example.com" not in last_of(run, model).text


@serves("langchain", "after_model, after_agent", "Run at the limit too, on the last answer.")
async def test_hooks_after_the_last_answer(serve: Serve) -> None:
    """What an agent does with its own answer is done with the last one."""
    seen: list[str] = []

    @after_model
    async def note(state: Any, runtime: Any) -> None:
        seen.append(str(state["messages"][-1].text))

    @after_agent
    async def sign(state: Any, runtime: Any) -> dict[str, Any]:
        last = state["messages"][-1]
        return {"messages": [AIMessage(f"{last.text}, signed", id=last.id)]}

    def build() -> Any:
        return create_agent(looking("main"), [weather], middleware=[note, sign])

    runs = await serve(build, limited("main concludes, signed", 2, 2), max_iterations=2)
    assert seen.count("main concludes") == len(runs)


@serves("langchain", "dynamic_prompt", "The last answer has the prompt of its own moment.")
async def test_a_dynamic_prompt(serve: Serve) -> None:
    """Instructions that depend on the state are made anew for the last call."""
    model = looking("main")

    @dynamic_prompt
    def prompt(request: Any) -> str:
        return f"You have seen {len(request.messages)} messages."

    def build() -> Any:
        return create_agent(model, [weather], middleware=[prompt])

    for run in await serve(build, limited("main concludes", 2, 2), max_iterations=2):
        assert last_of(run, model).instructions == "You have seen 5 messages."


async def test_edited_context(serve: Serve) -> None:
    """What a middleware clears from the context is cleared for the last call."""
    model = looking("main")

    def build() -> Any:
        edits = [ClearToolUsesEdit(trigger=1, keep=1, placeholder="[cleared]")]
        return create_agent(model, [weather], middleware=[ContextEditingMiddleware(edits=edits)])

    for run in await serve(build, limited("main concludes", 3, 3), max_iterations=3):
        last = last_of(run, model)
        assert (last.text.count("[cleared]"), last.text.count("sun in Bonn")) == (2, 1)


async def test_summarised_context(serve: Serve) -> None:
    """An agent that summed its conversation up is asked with the summary."""
    model = looking("main")

    def build() -> Any:
        summing = SummarizationMiddleware(
            model=Model(script=["A SUMMARY"]), trigger=("messages", 4), keep=("messages", 2)
        )
        return create_agent(model, [weather], middleware=[summing])

    for run in await serve(build, limited("main concludes", 4, 4), max_iterations=4):
        assert "A SUMMARY" in last_of(run, model).text


async def test_a_parallel_node_and_a_saver(serve: Serve) -> None:
    """A graph with a checkpointer, where a second node stands beside the tools."""
    model = looking("main")

    def build() -> Any:
        graph = loop_of(asking(model.bind_tools([weather]), ROLE), [weather])
        graph.add_node("audit", nothing)
        graph.add_edge("ask", "audit")
        return graph.compile(checkpointer=InMemorySaver())

    await check(serve, build, model)


async def test_a_saver_and_a_thread(serve: Serve) -> None:
    """After an answer at the limit the conversation can go on."""
    model = looking("main")
    saved = create_agent(model, [weather], checkpointer=InMemorySaver())
    await serve(
        lambda: saved, limited("main concludes", 1, 1), max_iterations=1, modes=("sync",),
        thread_id="t",
    )  # fmt: skip
    (run,) = await serve(
        lambda: saved, limited("main concludes", 1, 1), max_iterations=1, modes=("sync",),
        thread_id="t", question="And tomorrow?",
    )  # fmt: skip
    assert "main concludes" in last_of(run, model).text
    assert last_of(run, model).question == "And tomorrow?"


async def test_a_model_that_will_not_stop(serve: Serve) -> None:
    """Calls in the last reply are not made; text beside them is the answer."""
    stubborn = Model(script=[calls(LOOK, text="It was sunny.")])

    def build() -> Any:
        return create_agent(stubborn, [weather])

    for run in await serve(build, limited("It was sunny.", 2, 2), max_iterations=2):
        assert len(run.calls_of(stubborn)) == 3


class Forecast(BaseModel):
    """What is wanted."""

    city: str


@pytest.mark.parametrize("limit", [1, 3])
async def test_a_response_format(serve: Serve, limit: int) -> None:
    """An agent that owes a structured response gives one at the limit, too."""

    def reply(asked: Asked) -> Line:
        if "weather" in asked.tools:
            return calls(LOOK)
        return calls(call("Forecast", city="Bonn")) if asked.tools else "concluded"

    def build() -> Any:
        return create_agent(Model(script=[reply]), [weather], response_format=Forecast)

    for run in await serve(build, limited(None, limit, limit), max_iterations=limit):
        assert run.body["output"] == {"city": "Bonn"}


async def test_a_response_format_of_create_react_agent(serve: Serve) -> None:
    """The older prebuilt agent makes its structured response of the last answer."""

    def reply(asked: Asked) -> Line:
        if "Forecast" in asked.tools:
            return calls(call("Forecast", city="Bonn"))
        return calls(LOOK) if asked.tools else "concluded"

    def build() -> Any:
        return create_react_agent(Model(script=[reply]), [weather], response_format=Forecast)

    for run in await serve(build, limited("concluded", 2, 2), max_iterations=2):
        assert run.body["output"] == {"city": "Bonn"}


async def test_an_agent_in_an_agents_node(serve: Serve) -> None:
    """A graph whose node asks an agent by itself: that agent concludes."""
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
