"""Kind 2: the limit holds whatever the shape of the state, the prompt and the agent."""

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    before_agent,
    before_model,
)
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    RemoveMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.prebuilt import InjectedState, ToolNode
from langgraph.types import Command

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import limited
from tests.ecosystem.model import Model, call, loops
from tests.ecosystem.serves import serves
from tests.ecosystem.toolbox import asking, loop_of, said_by, weather

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
LOOK = call("weather", city="Bonn")
NO_ANSWER = "No answer was found within the limit of {} iterations."


def endless(*requests: Any, name: str = "model") -> Model:
    """A model that asks for tools for as long as it has some."""
    return Model(script=[loops(*(requests or (LOOK,)))], model_name=name)


def own_calls(run: Any, *models: Model) -> int:
    """How many calls the agent's own models had."""
    return sum(len(run.calls_of(model)) for model in models)


@serves("langchain", "`create_agent`", "Stopped after N turns, and asked once more without tools.")
@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_plain_agent_stops_at_the_limit(serve: Serve, limit: int) -> None:
    """The plain case: N turns, N + 1 calls, its own instructions in the last one."""
    model = endless()

    def build() -> Any:
        return create_agent(model, [weather], system_prompt="You travel.")

    expected = limited("concluded", limit, limit)
    for run in await serve(build, expected, max_iterations=limit, question="Where to?"):
        assert own_calls(run, model) == limit + 1
        last = run.calls_of(model)[-1]
        assert (last.tools, last.instructions, last.question) == ((), "You travel.", "Where to?")


def handing_over(to: str) -> Any:
    """A tool that hands over to another agent of the same graph."""

    @tool(f"to_{to}")
    def hand_over(
        state: Annotated[dict[str, Any], InjectedState],
        tool_call_id: Annotated[str, InjectedToolCallId],
    ) -> Any:
        """Hand over."""
        result = ToolMessage(f"over to {to}", tool_call_id=tool_call_id)
        messages = [*state["messages"], result]
        return Command(goto=to, graph=Command.PARENT, update={"messages": messages})

    return hand_over


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_hand_over_beside_a_call_counts(serve: Serve, limit: int) -> None:
    """Agents hand over in each turn, beside another call that has no result."""
    # The library itself leaves the call beside a hand-over without its result.
    models = [
        Model(script=[loops(f"to_{to}", LOOK)], model_name=name, picky=False)
        for name, to in (("day", "night"), ("night", "day"))
    ]

    def build() -> Any:
        graph = StateGraph(MessagesState)
        for model, to in zip(models, ("night", "day"), strict=True):
            tools = [handing_over(to), weather]
            agent = create_agent(model, tools, name=model.model_name)
            graph.add_node(model.model_name, agent)
        graph.add_edge(START, "day")
        return graph.compile()

    expected = limited("concluded", limit, limit * 2)
    for run in await serve(build, expected, max_iterations=limit):
        assert own_calls(run, *models) == limit + 1


async def test_results_as_human_messages_count(serve: Serve) -> None:
    """A graph may write the results of its tools as human messages."""
    model = Model(script=[loops(LOOK)], picky=False)

    def build() -> Any:
        async def act(state: MessagesState) -> dict[str, Any]:
            last = state["messages"][-1]
            assert isinstance(last, AIMessage)
            results = [await weather.ainvoke(request) for request in last.tool_calls]
            return {"messages": [HumanMessage(f"Observation: {r.content}") for r in results]}

        graph = StateGraph(MessagesState)
        graph.add_node("ask", asking(model.bind_tools([weather])))
        graph.add_node("act", act)
        graph.add_edge(START, "ask")
        graph.add_edge("ask", "act")
        graph.add_edge("act", "ask")
        return graph.compile()

    for run in await serve(build, limited("concluded", 3, 3), max_iterations=3):
        assert own_calls(run, model) == 4


def cleared() -> Any:
    """The results of tools are cleared from what the model is asked with."""
    edits = [ClearToolUsesEdit(trigger=1, keep=0)]
    return create_agent(endless(), [weather], middleware=[ContextEditingMiddleware(edits=edits)])


def trimmed() -> Any:
    """Each turn replaces the state by its question and its last turn."""

    @before_model
    async def trim(state: Any, runtime: Any) -> dict[str, Any] | None:
        messages = state["messages"]
        if len(messages) < 5:
            return None
        left = [messages[0], *messages[-2:]]
        return {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES), *left]}

    return create_agent(endless(), [weather], middleware=[trim])


def forgetful() -> Any:
    """A node that shows its model only the question, whatever happened since."""
    bound = endless().bind_tools([weather])

    async def ask(state: MessagesState) -> dict[str, Any]:
        seen = trim_messages(state["messages"], max_tokens=1, token_counter=len, strategy="first")
        return {"messages": [await bound.ainvoke(seen)]}

    return loop_of(ask, [weather]).compile()


def emptied() -> Any:
    """A node that empties the conversation after each turn but for the question."""
    bound = endless().bind_tools([weather])

    async def tidy(state: MessagesState) -> dict[str, Any]:
        question = state["messages"][0]
        return {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES), question]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", asking(bound))
    graph.add_node("tools", ToolNode([weather]))
    graph.add_node("tidy", tidy)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", "tools")
    graph.add_edge("tools", "tidy")
    graph.add_edge("tidy", "ask")
    return graph.compile()


@serves(
    "langchain",
    "`ContextEditingMiddleware`",
    "The limit holds; the last call has the edited messages.",
)
@pytest.mark.parametrize("build", [cleared, trimmed, forgetful, emptied])
async def test_pruned_turns_count(serve: Serve, build: Callable[[], Any]) -> None:
    """Turns that are no longer in the state, or not shown to the model, still count."""
    await serve(build, limited("concluded", 4, 4), max_iterations=4)


async def test_text_prompts_count(serve: Serve) -> None:
    """A node may write everything into one prompt, with its results outside of the messages."""
    model = endless()

    class Notes(MessagesState):
        notes: list[str]

    def build() -> Any:
        bound = model.bind_tools([weather])

        async def ask(state: Notes) -> dict[str, Any]:
            reply = await bound.ainvoke(f"Notes: {state.get('notes')}. What next?")
            assert isinstance(reply, AIMessage)
            if not reply.tool_calls:
                return {"messages": [reply]}
            results = [await weather.ainvoke(r["args"]) for r in reply.tool_calls]
            return {"notes": [*state.get("notes", []), *results]}

        def again(state: Notes) -> str:
            return END if isinstance(state["messages"][-1], AIMessage) else "ask"

        graph = StateGraph(Notes)
        graph.add_node("ask", ask)
        graph.add_edge(START, "ask")
        graph.add_conditional_edges("ask", again, ["ask", END])
        return graph.compile()

    for run in await serve(build, limited("concluded", 3, 3), max_iterations=3):
        assert own_calls(run, model) == 4


async def test_helper_calls_are_counted_apart(serve: Serve) -> None:
    """A guard in front of each turn has its own bound."""
    model, guard = endless(), Model(script=["fine"], model_name="guard")

    @before_model
    async def ask_guard(state: Any, runtime: Any) -> None:
        for _ in range(2):
            await guard.ainvoke("Is it fine?")

    def build() -> Any:
        return create_agent(model, [weather], middleware=[ask_guard])

    for run in await serve(build, limited("concluded", 3, 3), max_iterations=3):
        assert own_calls(run, model) == 4


async def test_endless_helper_ends_at_the_ceiling(serve: Serve) -> None:
    """Helpers have a ceiling of 4 (N + 1) calls; a run that it stopped reports it."""
    guard = Model(script=["perhaps"], model_name="guard")

    @before_agent
    async def ask_guard(state: Any, runtime: Any) -> None:
        for _ in range(500):
            await guard.ainvoke("Is it fine?")

    def build() -> Any:
        return create_agent(endless(), [weather], middleware=[ask_guard])

    expected = limited(None, 0, 0, limit="model_calls")
    for run in await serve(build, expected, max_iterations=2):
        assert len(run.calls_of(guard)) <= 12


async def test_looping_sub_agent_ends_at_the_ceiling(serve: Serve) -> None:
    """The ceiling of all calls stops an endless sub-agent in one tool call."""
    inner, outer = endless(name="inner"), Model(script=[loops("ask_inner")], model_name="outer")

    def build() -> Any:
        agent = create_agent(inner, [weather], name="inner")

        @tool
        async def ask_inner() -> str:
            """Ask."""
            return await said_by(agent)

        return create_agent(outer, [ask_inner])

    expected = limited("concluded", 1, 1, limit="model_calls")
    for run in await serve(build, expected, max_iterations=3):
        assert own_calls(run, inner, outer) <= 16


async def test_rejected_drafts_count(serve: Serve) -> None:
    """A reviewer is never content: each draft is a turn that was not usable."""
    model = Model(script=[lambda asked: f"draft {len(asked.messages)}"])

    def build() -> Any:
        async def review(state: MessagesState) -> dict[str, Any]:
            return {"messages": [HumanMessage("Not good enough.")]}

        graph = StateGraph(MessagesState)
        graph.add_node("write", asking(model, "You write."))
        graph.add_node("review", review)
        graph.add_edge(START, "write")
        graph.add_edge("write", "review")
        graph.add_edge("review", "write")
        return graph.compile()

    for run in await serve(build, limited(None, 3, 0), max_iterations=3):
        assert own_calls(run, model) == 4
        assert all(asked.instructions == "You write." for asked in run.calls_of(model))
        assert str(run.body["answer"]).startswith("draft")
