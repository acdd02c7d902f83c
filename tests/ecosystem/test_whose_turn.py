"""Kind 1: only the agent's own turns are iterations; calls of helpers are not."""

import asyncio
from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    LLMToolEmulator,
    LLMToolSelectorMiddleware,
    SummarizationMiddleware,
    after_agent,
    after_model,
    before_agent,
    before_model,
    wrap_model_call,
    wrap_tool_call,
)
from langchain_classic.agents import AgentExecutor, create_tool_calling_agent
from langchain_core.messages import SystemMessage, ToolMessage
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, create_react_agent, tools_condition
from pydantic import BaseModel

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import completed, limited
from tests.ecosystem.model import Asked, Line, Model, call, calls, last_result, loops
from tests.ecosystem.served import WITHOUT_STORE
from tests.ecosystem.serves import serves
from tests.ecosystem.toolbox import TOOLS_PROMPT, asking, stock, weather

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
LOOK = call("weather", city="Bonn")
READ = "I read: sun in Bonn"


class Verdict(BaseModel):
    """What a judge says."""

    safe: bool


class Desk(BaseModel):
    """Where a router sends a question."""

    name: Literal["weather", "stock"]


def traveller() -> Model:
    """Looks the weather up once, then answers."""
    return Model(script=[calls(LOOK), last_result()], model_name="traveller")


def judge() -> Any:
    """Gives its verdict by a tool call, through `with_structured_output`."""
    return Model(script=[calls(call("Verdict", safe=True))]).with_structured_output(Verdict)


def router() -> Any:
    """Names a desk by a tool that is bound by hand, so that no option marks it."""
    return Model(script=[calls(call("Desk", name="weather"))]).bind_tools([Desk])


def titles() -> Model:
    """Says a title in plain text."""
    return Model(script=["A TITLE OF FOUR WORDS"])


def around(where: str, helper: Any) -> Any:
    """A middleware that asks a helper at one place of an agent."""

    async def hook(state: Any, runtime: Any) -> None:
        await helper.ainvoke("What of this?")

    async def wrapped(request: Any, handler: Any) -> Any:
        await helper.ainvoke("What of this?")
        return await handler(request)

    hooks: dict[str, Any] = {
        "before_agent": before_agent,
        "before_model": before_model,
        "after_model": after_model,
        "after_agent": after_agent,
        "wrap_model_call": wrap_model_call,
        "wrap_tool_call": wrap_tool_call,
    }
    return hooks[where](wrapped if where.startswith("wrap") else hook)


PLACES = (
    "before_agent", "before_model", "wrap_model_call", "wrap_tool_call", "after_model",
    "after_agent",
)  # fmt: skip


@serves(
    "langchain",
    "`before_agent` … `after_agent`, `wrap_model_call`, `wrap_tool_call`",
    "A hook's model call is no turn, and its tool calls are not rejected.",
)
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("helper", [judge, router, titles])
async def test_model_call_of_a_hook_is_no_turn(serve: Serve, where: str, helper: Any) -> None:
    """The model call of a middleware is no iteration, and nothing of it is rejected."""

    def build() -> Any:
        return create_agent(traveller(), [weather], middleware=[around(where, helper())])

    await serve(build, completed(READ, 1, 1), modes=WITHOUT_STORE)


@pytest.mark.parametrize("where", ["before_agent", "wrap_model_call", "wrap_tool_call"])
async def test_hook_does_not_use_up_the_limit(serve: Serve, where: str) -> None:
    """At the limit an agent with a guard has made N + 1 calls of its own."""
    model = Model(script=[loops(LOOK)])

    def build() -> Any:
        return create_agent(model, [weather], middleware=[around(where, judge())])

    for run in await serve(build, limited("concluded", 2, 2), max_iterations=2):
        assert len(run.calls_of(model)) == 3


@pytest.mark.parametrize("where", ["after_model", "wrap_tool_call"])
async def test_first_call_of_a_hook_at_the_limit_is_no_turn(serve: Serve, where: str) -> None:
    """A hook that asks for plain text after the last turn does not take the place of that turn."""
    model = Model(script=[loops(LOOK)])

    def build() -> Any:
        return create_agent(model, [weather], middleware=[around(where, titles())])

    for run in await serve(build, limited("concluded", 1, 1), max_iterations=1):
        assert len(run.calls_of(model)) == 2


@serves("langchain", "`LLMToolSelectorMiddleware`", "Its selection is a helper's call, no turn.")
async def test_selector_is_no_turn(serve: Serve) -> None:
    """The model that selects tools before each turn adds no iteration and no text."""
    selector = Model(script=[calls(call("ToolSelectionResponse", tools=["weather"]))])
    model = Model(script=[calls(LOOK), calls(call("weather", city="Ulm")), last_result()])

    def build() -> Any:
        selecting = LLMToolSelectorMiddleware(model=selector, max_tools=1)
        return create_agent(model, [weather, stock], middleware=[selecting])

    for run in await serve(build, completed("I read: sun in Ulm", 2, 2)):
        assert [asked.tools for asked in run.calls_of(model)] == [("weather",)] * 3
        assert len(run.calls_of(selector)) == 3


@serves("langchain", "`SummarizationMiddleware`", "Its summary is a helper's call, no turn.")
async def test_summariser_is_no_turn(serve: Serve) -> None:
    """A summary in the middle of a run adds no iteration, and its text is not the answer's."""
    summariser = Model(script=["A SUMMARY"], model_name="summariser")
    route = {"": "Bonn", "sun in Bonn": "Ulm", "sun in Ulm": "Kiel"}

    def reply(asked: Asked) -> Line:
        read = [str(m.text) for m in asked.messages if isinstance(m, ToolMessage)]
        last = read[-1] if read else ""
        return calls(call("weather", city=route[last])) if last in route else f"I read: {last}"

    model = Model(script=[reply], model_name="traveller")

    def build() -> Any:
        summing = SummarizationMiddleware(
            model=summariser, trigger=("messages", 5), keep=("messages", 2)
        )
        return create_agent(model, [weather], middleware=[summing])

    for run in await serve(build, completed("I read: sun in Kiel", 3, 3)):
        assert run.calls_of(summariser)


@serves("langchain", "`LLMToolEmulator`", "The emulating model is a helper; the tool does not run.")
async def test_emulated_tool_is_no_turn(serve: Serve) -> None:
    """The model that emulates a tool makes no call and no answer of the agent."""
    emulator = Model(script=["fog in Bonn"], model_name="emulator")

    def build() -> Any:
        emulating = LLMToolEmulator(tools=["weather"], model=emulator)
        return create_agent(traveller(), [weather], middleware=[emulating])

    await serve(build, completed("I read: fog in Bonn", 1, 0))


async def test_router_in_a_node_is_no_turn(serve: Serve) -> None:
    """Nodes that classify and grade, before the agent's own, have no part in its counts."""
    grades = judge()

    def build() -> Any:
        routes, talks = router(), traveller().bind_tools([weather])

        async def classify(state: MessagesState) -> dict[str, Any]:
            await routes.ainvoke(state["messages"])
            return {}

        async def grade(state: MessagesState) -> dict[str, Any]:
            await grades.ainvoke("Is the result good?")
            return {}

        graph = StateGraph(MessagesState)
        graph.add_node("classify", classify)
        graph.add_node("ask", asking(talks))
        graph.add_node("tools", ToolNode([weather]))
        graph.add_node("grade", grade)
        graph.add_edge(START, "classify")
        graph.add_edge("classify", "ask")
        graph.add_conditional_edges("ask", tools_condition)
        graph.add_edge("tools", "grade")
        graph.add_edge("grade", "ask")
        return graph.compile()

    await serve(build, completed(READ, 1, 1))


@pytest.mark.parametrize("rewrites", [judge, titles])
async def test_chain_before_an_executor_is_no_turn(serve: Serve, rewrites: Any) -> None:
    """A chain in front of an executor's agent may ask its own model."""

    def build() -> Any:
        hint = RunnableLambda(lambda given: given["input"]) | rewrites()
        agent = create_tool_calling_agent(traveller(), [weather], TOOLS_PROMPT)
        return AgentExecutor(agent=RunnablePassthrough.assign(hint=hint) | agent, tools=[weather])

    await serve(build, completed(READ, 1, 1))


@serves(
    "langgraph",
    "`create_react_agent(response_format=…)`",
    "The call for the structured response is no turn; `output` has it.",
)
async def test_response_format_is_no_turn(serve: Serve) -> None:
    """The last call, which makes a structured response of the answer, adds no iteration."""

    def reply(asked: Asked) -> Line:
        if "Verdict" in asked.tools:
            return calls(call("Verdict", safe=True))
        return last_result() if asked.results else calls(LOOK)

    def build() -> Any:
        return create_react_agent(Model(script=[reply]), [weather], response_format=Verdict)

    for run in await serve(build, completed(None, 1, 1)):
        assert run.body["output"] == {"safe": True}


@serves(
    "langgraph",
    "`create_react_agent(pre_model_hook=…, post_model_hook=…)`",
    "A hook's model call is no turn.",
)
@pytest.mark.parametrize("helper", [judge, titles])
async def test_hook_of_a_prebuilt_agent_is_no_turn(serve: Serve, helper: Any) -> None:
    """The older prebuilt agent has nodes of the user's before and after each turn."""

    async def before(state: Any) -> dict[str, Any]:
        await helper().ainvoke("What of this?")
        return {"llm_input_messages": state["messages"]}

    async def after(state: Any) -> dict[str, Any]:
        await helper().ainvoke("What of this?")
        return {}

    def build() -> Any:
        hooks: Any = {"pre_model_hook": before, "post_model_hook": after}
        return create_react_agent(traveller(), [weather], **hooks)

    await serve(build, completed(READ, 1, 1), modes=WITHOUT_STORE)


async def test_hook_of_a_prebuilt_agent_does_not_conclude(serve: Serve) -> None:
    """A summary before each turn, and a judge after it, conclude nothing."""
    model, summariser = Model(script=[loops(LOOK)]), Model(script=["A SUMMARY"])

    async def before(state: Any) -> dict[str, Any]:
        summary = await summariser.ainvoke("Sum it up.")
        note = SystemMessage(str(summary.text))
        return {"llm_input_messages": [note, *state["messages"]]}

    async def after(state: Any) -> dict[str, Any]:
        await judge().ainvoke("Is it safe?")
        return {}

    def build() -> Any:
        hooks: Any = {"pre_model_hook": before, "post_model_hook": after}
        return create_react_agent(model, [weather], **hooks)

    for run in await serve(build, limited("concluded", 2, 2), max_iterations=2):
        assert len(run.calls_of(model)) == 3
        assert run.calls_of(model)[-1].instructions == "A SUMMARY"


async def test_handler_called_twice_is_one_turn(serve: Serve) -> None:
    """The better one of two replies is one turn, and only its calls are made."""
    model = Model(script=[calls(LOOK), last_result()])

    @wrap_model_call
    async def best_of_two(request: Any, handler: Any) -> Any:
        await handler(request)
        return await handler(request)

    def build() -> Any:
        return create_agent(model, [weather], middleware=[best_of_two])

    for run in await serve(build, completed(READ, 1, 1)):
        assert len(run.calls_of(model)) == 4


async def test_vote_is_one_turn(serve: Serve) -> None:
    """Three parallel replies, one of which is used, are one turn."""

    def build() -> Any:
        model = traveller().bind_tools([weather])

        async def vote(state: MessagesState) -> dict[str, Any]:
            replies = await asyncio.gather(*(model.ainvoke(state["messages"]) for _ in range(3)))
            return {"messages": [replies[1]]}

        graph = StateGraph(MessagesState)
        graph.add_node("vote", vote)
        graph.add_node("tools", ToolNode([weather]))
        graph.add_edge(START, "vote")
        graph.add_conditional_edges("vote", tools_condition)
        graph.add_edge("tools", "vote")
        return graph.compile()

    await serve(build, completed(READ, 1, 1))
