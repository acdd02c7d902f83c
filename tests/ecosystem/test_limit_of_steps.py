"""Kind 2: steps bound a run without a LangChain model, or with a limit on steps by the user."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    wrap_model_call,
)
from langchain_core.messages import (
    AIMessage,
)
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import create_react_agent

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import completed, limited
from tests.ecosystem.model import Model, calls, last_result
from tests.ecosystem.serves import serves
from tests.ecosystem.test_limit import LOOK, NO_ANSWER, endless, own_calls
from tests.ecosystem.toolbox import asking, loop_of, nothing, weather

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")


def by_a_raw_client() -> Any:
    """A node that asks a provider by the provider's own client."""

    async def ask(state: MessagesState) -> dict[str, Any]:
        request = {**LOOK, "id": uuid.uuid4().hex}
        return {"messages": [AIMessage("", tool_calls=[request])]}

    return loop_of(ask, [weather]).compile()


def by_a_cache() -> Any:
    """A middleware that answers from a cache, so that no model is asked."""

    @wrap_model_call
    async def cached(request: Any, handler: Any) -> Any:
        return AIMessage("", tool_calls=[{**LOOK, "id": uuid.uuid4().hex}])

    return create_agent(Model(script=["never asked"]), [weather], middleware=[cached])


def by_hand() -> Any:
    """A node that writes turns of its own code."""

    async def ask(state: MessagesState) -> dict[str, Any]:
        requests = [{**LOOK, "id": uuid.uuid4().hex}]
        return {"messages": [AIMessage(f"step {len(state['messages'])}", tool_calls=requests)]}

    graph = loop_of(ask, [weather])
    graph.add_node("audit", nothing)
    graph.add_edge("ask", "audit")
    return graph.compile()


@pytest.mark.parametrize("build", [by_a_raw_client, by_hand])
async def test_tool_calls_without_a_model_are_turns(serve: Serve, build: Callable[[], Any]) -> None:
    """A message with tool calls from a node that asked no model is a turn."""
    await serve(build, limited(NO_ANSWER.format(3), 3, 3), max_iterations=3)


async def test_cached_turns_count(serve: Serve) -> None:
    """Turns from a cache count; the agent's model writes the last answer if it is reached."""
    await serve(by_a_cache, limited(None, 3, 3), max_iterations=3)


async def test_loop_without_messages_is_bounded(serve: Serve) -> None:
    """After 25 steps in a row without a model call each further step is an iteration."""
    ticks: list[str] = []

    class Count(MessagesState):
        ticks: int

    def build() -> Any:
        async def tick(state: Count) -> dict[str, Any]:
            ticks.append("tick")
            return {"ticks": state.get("ticks", 0) + 1}

        graph = StateGraph(Count)
        graph.add_node("tick", tick)
        graph.add_node("tock", nothing)
        graph.add_edge(START, "tick")
        graph.add_edge("tick", "tock")
        graph.add_edge("tock", "tick")
        return graph.compile()

    await serve(build, limited(NO_ANSWER.format(4), 4, 0), max_iterations=4)
    assert len(ticks) <= 3 * 16


async def test_steps_of_plain_code_are_no_turns(serve: Serve) -> None:
    """Twenty steps of plain code between two calls of a model are no turns."""

    def build() -> Any:
        model = Model(script=[calls(LOOK), last_result()])
        graph = loop_of(asking(model.bind_tools([weather])), [weather])
        for n in range(20):
            graph.add_node(f"step{n}", nothing)
        graph.edges.remove((START, "ask"))
        graph.add_edge(START, "step0")
        for n in range(19):
            graph.add_edge(f"step{n}", f"step{n + 1}")
        graph.add_edge("step19", "ask")
        return graph.compile()

    await serve(build, completed("I read: sun in Bonn", 1, 1), max_iterations=2)


def of_create_agent(model: Model) -> Any:
    """A model's turn is a step, and its tools are another."""
    return create_agent(model, [weather])


def of_a_graph(model: Model) -> Any:
    """A hand-made loop."""
    return loop_of(asking(model.bind_tools([weather])), [weather]).compile()


def of_create_react_agent(model: Model) -> Any:
    """The older prebuilt agent."""
    return create_react_agent(model, [weather])


@serves("langgraph", "`with_config(recursion_limit=…)`", "Obeyed; the run ends as at the limit.")
@pytest.mark.parametrize("kind", [of_create_agent, of_a_graph])
async def test_recursion_limit_of_the_user_is_obeyed(
    serve: Serve, kind: Callable[[Model], Any]
) -> None:
    """A recursion limit that the user set is obeyed, and ends as at the iteration limit."""
    model = endless()

    def build() -> Any:
        return kind(model).with_config(recursion_limit=6)

    for run in await serve(build, limited(None, 3, 3)):
        assert own_calls(run, model) <= 4


async def test_sentence_about_the_recursion_limit_is_no_answer(serve: Serve) -> None:
    """The sentence that the older prebuilt agent puts in place of a turn is no answer."""
    model = endless()

    def build() -> Any:
        return of_create_react_agent(model).with_config(recursion_limit=6)

    for run in await serve(build, limited(None, None, 2)):
        assert run.body["answer"] != "Sorry, need more steps to process this request."
        assert own_calls(run, model) <= 4
