"""Kind 6: a run that stopped for a human is interrupted; one that did not is not."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import create_react_agent
from langgraph.types import interrupt

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import completed, interrupted
from tests.ecosystem.model import Model, call, calls, last_result
from tests.ecosystem.served import WITHOUT_STORE
from tests.ecosystem.serves import does_not_serve
from tests.ecosystem.toolbox import asking, loop_of, nothing, said_by, weather

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
LOOK = call("weather", city="Bonn")
READ = "I read: sun in Bonn"
WAITS = "Waits for a human, who cannot answer yet: 500 `interrupted`."
savers = pytest.mark.parametrize("saver", [InMemorySaver, lambda: None], ids=["saver", "none"])
texts = pytest.mark.parametrize("text", ["", "Let me look."], ids=["silent", "says"])


def looking(text: str = "") -> Model:
    """Looks the weather up, perhaps saying so, and answers."""
    return Model(script=[calls(LOOK, text=text), last_result()])


@does_not_serve("langchain", "`create_agent(interrupt_before=…, interrupt_after=…)`", WAITS)
@savers
@texts
async def test_breakpoint_before_the_tools_interrupts(serve: Serve, saver: Any, text: str) -> None:
    """A breakpoint before the tools waits for a human, whatever text is beside the calls."""

    def build() -> Any:
        stops: Any = {"interrupt_before": ["tools"], "checkpointer": saver()}
        return create_agent(looking(text), [weather], **stops)

    await serve(build, interrupted(1, 0))


@savers
@pytest.mark.parametrize(("node", "tool_calls"), [("model", 0), ("tools", 1)])
async def test_breakpoint_after_a_node_interrupts(
    serve: Serve, saver: Any, node: str, tool_calls: int
) -> None:
    """A breakpoint after a node with more to come waits for a human."""

    def build() -> Any:
        stops: Any = {"interrupt_after": [node], "checkpointer": saver()}
        return create_agent(looking("Let me look."), [weather], **stops)

    await serve(build, interrupted(1, tool_calls))


@does_not_serve("langgraph", "`compile(interrupt_before=…, interrupt_after=…)`", WAITS)
@savers
@pytest.mark.parametrize("where", ["interrupt_before", "interrupt_after"])
async def test_breakpoint_of_a_graph_interrupts(serve: Serve, saver: Any, where: str) -> None:
    """A breakpoint of a hand-made graph waits for a human."""

    def build() -> Any:
        stops: Any = {where: ["ask"] if where.endswith("after") else ["tools"]}
        model = looking("Let me look.").bind_tools([weather])
        return loop_of(asking(model), [weather]).compile(checkpointer=saver(), **stops)

    await serve(build, interrupted(1, 0))


@savers
async def test_breakpoint_of_a_prebuilt_agent_interrupts(serve: Serve, saver: Any) -> None:
    """A breakpoint of the older prebuilt agent waits for a human."""

    def build() -> Any:
        stops: Any = {"interrupt_before": ["tools"], "checkpointer": saver()}
        return create_react_agent(looking("Let me look."), [weather], **stops)

    await serve(build, interrupted(1, 0))


@savers
async def test_breakpoint_at_the_first_node_interrupts(serve: Serve, saver: Any) -> None:
    """A graph may stop before its first node."""

    def build() -> Any:
        stops: Any = {"interrupt_before": ["model"], "checkpointer": saver()}
        return create_agent(looking(), [weather], **stops)

    await serve(build, interrupted())


@savers
async def test_breakpoint_in_a_subgraph_interrupts(serve: Serve, saver: Any) -> None:
    """The breakpoint may be in a graph that is a node of another."""

    def build() -> Any:
        inner = create_agent(looking("Let me look."), [weather], interrupt_before=["tools"])
        graph = StateGraph(MessagesState)
        graph.add_node("inner", inner)
        graph.add_node("after", asking(Model(script=["All is said."])))
        graph.add_edge(START, "inner")
        graph.add_edge("inner", "after")
        return graph.compile(checkpointer=saver())

    await serve(build, interrupted(1, 0))


def _stops_in_a_tool(**options: Any) -> Any:
    """An agent whose tool asks an agent that stops."""
    inner = create_agent(looking("Let me look."), [weather], **options)

    @tool
    async def ask_inner() -> str:
        """Ask another agent."""
        return await said_by(inner, configurable={"thread_id": "inner"})

    return create_agent(Model(script=[calls("ask_inner"), "It is done."]), [ask_inner])


def breakpoint_in_a_tool() -> Any:
    """The agent inside has a breakpoint."""
    return _stops_in_a_tool(interrupt_before=["tools"])


def breakpoint_and_saver_in_a_tool() -> Any:
    """The agent inside has a breakpoint and a checkpointer of its own."""
    return _stops_in_a_tool(interrupt_before=["tools"], checkpointer=InMemorySaver())


def human_in_a_tool() -> Any:
    """The agent inside asks a human."""
    return _stops_in_a_tool(middleware=[HumanInTheLoopMiddleware({"weather": True})])


def human_and_saver_in_a_tool() -> Any:
    """The agent inside asks a human, and has a checkpointer of its own."""
    return _stops_in_a_tool(
        middleware=[HumanInTheLoopMiddleware({"weather": True})], checkpointer=InMemorySaver()
    )


@pytest.mark.parametrize(
    "build",
    [
        breakpoint_in_a_tool, breakpoint_and_saver_in_a_tool, human_in_a_tool,
        human_and_saver_in_a_tool,
    ],
)  # fmt: skip
async def test_interrupt_of_a_sub_agent_stops_the_run(
    serve: Serve, build: Callable[[], Any]
) -> None:
    """An agent inside a tool that stops for a human stops the run."""
    await serve(build, interrupted(1, 1))


def human_in_a_node() -> Any:
    """A node asks an agent that has a checkpointer of its own and asks a human."""
    inner = create_agent(
        looking("Let me look."),
        [weather],
        middleware=[HumanInTheLoopMiddleware({"weather": True})],
        checkpointer=InMemorySaver(),
    )

    async def ask(state: MessagesState) -> dict[str, Any]:
        await said_by(inner, configurable={"thread_id": "inner"})
        return {"messages": [AIMessage("It is done.")]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    return graph.compile()


async def test_interrupt_of_an_agent_in_a_node_stops_the_run(serve: Serve) -> None:
    """An interrupt of an agent inside a node stops the run, whatever the node answers then."""
    await serve(human_in_a_node, interrupted(None, 0))


@does_not_serve("langchain", "`HumanInTheLoopMiddleware`", WAITS)
@savers
async def test_human_in_the_loop_interrupts(serve: Serve, saver: Any) -> None:
    """A middleware lets a human decide on a tool call."""

    def build() -> Any:
        asks = HumanInTheLoopMiddleware({"weather": True})
        stops: Any = {"middleware": [asks], "checkpointer": saver()}
        return create_agent(looking("Let me look."), [weather], **stops)

    await serve(build, interrupted(1, 0))


async def test_human_in_the_loop_of_other_tools_does_not_interrupt(serve: Serve) -> None:
    """A middleware lets a human decide on other tools only."""

    def build() -> Any:
        asks = HumanInTheLoopMiddleware({"other": True})
        return create_agent(looking(), [weather], middleware=[asks])

    await serve(build, completed(READ, 1, 1))


def asks_in_a_node() -> Any:
    """A node asks a human."""

    async def approve(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"approved: {interrupt('May I?')}")]}

    graph = StateGraph(MessagesState)
    graph.add_node("approve", approve)
    graph.add_edge(START, "approve")
    return graph.compile()


def asks_beside_another_node() -> Any:
    """A node asks a human while another one works and answers."""

    async def approve(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"approved: {interrupt('May I?')}")]}

    async def work(state: MessagesState) -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return {"messages": [AIMessage("worked")]}

    graph = StateGraph(MessagesState)
    graph.add_node("approve", approve)
    graph.add_node("work", work)
    graph.add_edge(START, "approve")
    graph.add_edge(START, "work")
    return graph.compile()


def asks_in_a_subgraph() -> Any:
    """A graph that is a node asks a human."""
    graph = StateGraph(MessagesState)
    graph.add_node("inner", asks_in_a_node())
    graph.add_edge(START, "inner")
    return graph.compile()


@does_not_serve("langgraph", "`interrupt()`", WAITS)
@pytest.mark.parametrize("build", [asks_in_a_node, asks_beside_another_node, asks_in_a_subgraph])
async def test_interrupt_of_a_node_stops_the_run(serve: Serve, build: Callable[[], Any]) -> None:
    """A node that asks a human stops the run."""
    await serve(build, interrupted())


@savers
@pytest.mark.parametrize(
    "stops",
    [
        {"interrupt_before": ["unused"]},
        {"interrupt_after": ["unused"]},
        {"interrupt_after": ["last"]},
        {"interrupt_after": ["unused", "last"]},
    ],
    ids=["before unused", "after unused", "after the last", "both"],
)
async def test_breakpoint_that_stops_nothing_leaves_an_answer(
    serve: Serve, saver: Any, stops: Any
) -> None:
    """A breakpoint after the last step, or on an unused node, leaves an answer."""

    def build() -> Any:
        graph = StateGraph(MessagesState)
        graph.add_node("first", nothing)
        graph.add_node("last", asking(Model(script=["All is said."])))
        graph.add_node("unused", nothing)
        graph.add_edge(START, "first")
        graph.add_conditional_edges("first", lambda _: "last", ["last", "unused"])
        return graph.compile(checkpointer=saver(), **stops)

    await serve(build, completed("All is said."), modes=WITHOUT_STORE)


async def test_breakpoint_after_the_last_turn_leaves_an_answer(serve: Serve) -> None:
    """An agent with a breakpoint after its model answers without its tools."""

    def build() -> Any:
        return create_agent(Model(script=["At once."]), [weather], interrupt_after=["model"])

    await serve(build, completed("At once."))
