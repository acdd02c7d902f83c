"""Kind 5: a failing tool never ends a run, and the agent's own handling comes first."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ToolErrorMiddleware,
    ToolRetryMiddleware,
    wrap_tool_call,
)
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, InjectedToolCallId, tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, create_react_agent, tools_condition
from langgraph.types import Command, RetryPolicy

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import completed, failed
from tests.ecosystem.model import Line, Model, call, calls, last_result
from tests.ecosystem.serves import serves
from tests.ecosystem.toolbox import asking, loop_of, offline, said_by

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")

FAILED = "I read: Tool offline failed: ConnectionError"


def flaky_tool(times: int) -> BaseTool:
    """A tool that fails so many times, then works."""
    tries = iter(range(99))

    @tool
    async def station(city: str) -> str:
        """Ask a station."""
        if next(tries) < times:
            raise ConnectionError("busy")
        return f"sun in {city}"

    return station


ASKS_STATION = calls(call("station", city="Bonn"))


@serves("langchain", "`ToolRetryMiddleware`", "Sees what the tool raised; each try is a tool call.")
async def test_retry_middleware_sees_the_exception(serve: Serve) -> None:
    """The middleware sees the tool's exception, and calls the tool again."""

    def build() -> Any:
        retrying = ToolRetryMiddleware(max_retries=3, initial_delay=0.01, jitter=False)
        model = Model(script=[ASKS_STATION, last_result()])
        return create_agent(model, [flaky_tool(2)], middleware=[retrying])

    for run in await serve(build, completed("I read: sun in Bonn", 1, 3)):
        assert run.outcomes == {"station": ["completed", "tool_error", "tool_error"]}


async def test_model_reads_the_text_of_the_middleware(serve: Serve) -> None:
    """In the end the model reads the text of the middleware."""

    def build() -> Any:
        retrying = ToolRetryMiddleware(
            max_retries=1, initial_delay=0.01, jitter=False, on_failure=lambda _: "gave up"
        )
        model = Model(script=[calls(call("offline", city="Bonn")), last_result()])
        return create_agent(model, [offline], middleware=[retrying])

    await serve(build, completed("I read: gave up", 1, 2))


async def test_retry_for_other_errors_leaves_our_text(serve: Serve) -> None:
    """A retry that is not for this error leaves it to us: the model reads our text."""

    def build() -> Any:
        retrying = ToolRetryMiddleware(max_retries=3, initial_delay=0.01, retry_on=(KeyError,))
        model = Model(script=[calls(call("offline", city="Bonn")), last_result()])
        return create_agent(model, [offline], middleware=[retrying])

    await serve(build, completed(FAILED, 1, 1))


@serves(
    "langchain",
    "`ToolErrorMiddleware`",
    "The model reads its words; what it lets pass ends no run.",
)
@pytest.mark.parametrize(
    ("words", "answer"), [("look elsewhere", "I read: look elsewhere"), (None, FAILED)]
)
async def test_error_handler_of_a_middleware_is_used(
    serve: Serve, words: str | None, answer: str
) -> None:
    """The model reads the middleware's text of an error; an unhandled error never ends a run."""

    def build() -> Any:
        handling = ToolErrorMiddleware(lambda error, request: words)
        model = Model(script=[calls(call("offline", city="Bonn")), last_result()])
        return create_agent(model, [offline], middleware=[handling])

    for run in await serve(build, completed(answer, 1, 1)):
        assert run.outcomes == {"offline": ["tool_error"]}


@serves("langchain", "`wrap_tool_call` with an except branch", "Sees what the tool raised.")
async def test_except_branch_replaces_a_tool(serve: Serve) -> None:
    """A middleware may replace a tool that is down."""

    @wrap_tool_call
    async def stand_in(request: Any, handler: Any) -> Any:
        try:
            return await handler(request)
        except ConnectionError as raised:
            words = f"yesterday's forecast, as {raised}"
            return ToolMessage(words, tool_call_id=request.tool_call["id"])

    def build() -> Any:
        model = Model(script=[calls(call("offline", city="Bonn")), last_result()])
        return create_agent(model, [offline], middleware=[stand_in])

    answer = "I read: yesterday's forecast, as station of Bonn is down"
    await serve(build, completed(answer, 1, 1))


def own_words(error: ConnectionError) -> str:
    """A graph's own words for a tool that is down."""
    return f"no: {error}"


@serves("langgraph", "`ToolNode(handle_tool_errors=…)`", "The model reads its words.")
@pytest.mark.parametrize(
    ("handle", "answer"),
    [
        (own_words, "I read: no: station of Bonn is down"),
        ("try tomorrow", "I read: try tomorrow"),
        ((KeyError,), FAILED),
        (False, FAILED),
    ],
    ids=["function", "words", "other errors", "nothing"],
)
async def test_error_handler_of_a_tool_node_is_used(serve: Serve, handle: Any, answer: str) -> None:
    """The model reads the ToolNode's text of an error; an unhandled error never ends a run."""

    def build() -> Any:
        model = Model(script=[calls(call("offline", city="Bonn")), last_result()])
        graph = StateGraph(MessagesState)
        graph.add_node("ask", asking(model.bind_tools([offline])))
        graph.add_node("tools", ToolNode([offline], handle_tool_errors=handle))
        graph.add_edge(START, "ask")
        graph.add_conditional_edges("ask", tools_condition)
        graph.add_edge("tools", "ask")
        return graph.compile()

    await serve(build, completed(answer, 1, 1))


def with_policy(tools: BaseTool) -> Any:
    """A graph whose tool node is tried again where it raises ConnectionError."""
    model = Model(script=[calls(call(tools.name, city="Bonn")), last_result()])
    policy = RetryPolicy(
        max_attempts=3, initial_interval=0.01, jitter=False, retry_on=ConnectionError
    )
    graph = StateGraph(MessagesState)
    graph.add_node("ask", asking(model.bind_tools([tools])))
    graph.add_node("tools", ToolNode([tools], handle_tool_errors=False), retry_policy=policy)
    graph.add_edge(START, "ask")
    graph.add_conditional_edges("ask", tools_condition)
    graph.add_edge("tools", "ask")
    return graph.compile()


@serves(
    "langgraph",
    "`RetryPolicy` of a node",
    "Sees what a tool raised; retries are attempts of one step.",
)
async def test_retry_policy_sees_the_exception(serve: Serve) -> None:
    """The policy sees the tool's exception, and the node executes again."""
    await serve(lambda: with_policy(flaky_tool(2)), completed("I read: sun in Bonn", 1, 3))


async def test_model_reads_the_failure_after_the_last_attempt(serve: Serve) -> None:
    """After the last attempt the model reads that the tool failed."""
    await serve(lambda: with_policy(offline), completed(FAILED, 1, 3))


def asks_sub_agent() -> Any:
    """An agent whose tool asks an agent whose tool is down."""
    inner = create_agent(
        Model(script=[calls(call("offline", city="Bonn")), last_result("inner read")]), [offline]
    )

    @tool
    async def ask_inner() -> str:
        """Ask another agent."""
        return await said_by(inner)

    return create_agent(Model(script=[calls("ask_inner"), last_result()]), [ask_inner])


def asks_sub_graph() -> Any:
    """The same, with a hand-made graph and a prebuilt agent below it."""
    inner = create_react_agent(
        Model(script=[calls(call("offline", city="Bonn")), last_result("inner read")]), [offline]
    )

    @tool
    async def ask_inner() -> str:
        """Ask another agent."""
        return await said_by(inner)

    model = Model(script=[calls("ask_inner"), last_result()])
    return loop_of(asking(model.bind_tools([ask_inner])), [ask_inner]).compile()


@pytest.mark.parametrize("build", [asks_sub_agent, asks_sub_graph])
async def test_tool_of_a_sub_agent_is_guarded(serve: Serve, build: Callable[[], Any]) -> None:
    """A tool of an agent inside a tool is guarded as well: that agent's model reads the failure."""
    answer = "I read: inner read: Tool offline failed: ConnectionError"
    for run in await serve(build, completed(answer, 1, 1)):
        assert run.outcomes == {"ask_inner": ["completed"], "offline": ["tool_error"]}


async def test_tool_of_an_agent_in_a_node_is_guarded(serve: Serve) -> None:
    """A tool of an agent that a node asks is guarded as well."""

    def build() -> Any:
        inner = create_agent(
            Model(script=[calls(call("offline", city="Bonn")), last_result()]), [offline]
        )

        async def ask(state: MessagesState) -> dict[str, Any]:
            return {"messages": [AIMessage(await said_by(inner))]}

        graph = StateGraph(MessagesState)
        graph.add_node("ask", ask)
        graph.add_edge(START, "ask")
        return graph.compile()

    await serve(build, completed(FAILED, 1, 1))


@tool
async def gives_up(city: str) -> str:
    """Cancel the task that it is called in."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(1)
    return "never"


@tool
async def is_cancelled(city: str) -> str:
    """Wait for something that is cancelled."""
    waiting = asyncio.ensure_future(asyncio.sleep(5))
    asyncio.get_running_loop().call_later(0.01, waiting.cancel)
    await waiting
    return "never"


@tool
async def raises_cancelled(city: str) -> str:
    """Raise what a cancelled scope of another library raises."""
    raise asyncio.CancelledError("scope")


@pytest.mark.parametrize("broken", [gives_up, is_cancelled, raises_cancelled], ids=lambda t: t.name)
async def test_cancelled_tool_has_failed(serve: Serve, broken: BaseTool) -> None:
    """A tool whose own task is cancelled has failed; its sibling finishes."""

    @tool
    async def slow(city: str) -> str:
        """Take a while."""
        await asyncio.sleep(0.1)
        return f"sun in {city}"

    def build() -> Any:
        asks = calls(call(broken.name, city="Ulm"), call("slow", city="Bonn"))
        read: Line = lambda asked: " / ".join(asked.results)  # noqa: E731
        return create_agent(Model(script=[asks, read]), [broken, slow])

    answer = f"Tool {broken.name} failed: CancelledError / sun in Bonn"
    for run in await serve(build, completed(answer, 1, 2)):
        assert run.outcomes == {broken.name: ["tool_error"], "slow": ["completed"]}


@tool
def to_nobody(tool_call_id: Annotated[str, InjectedToolCallId]) -> Any:
    """Hand over to an agent that is not there."""
    result = ToolMessage("over", tool_call_id=tool_call_id)
    return Command(goto="nobody", graph=Command.PARENT, update={"messages": [result]})


def hands_over_to_nobody() -> Any:
    """An agent at the top whose tool hands over to its parent."""
    return create_agent(Model(script=[calls("to_nobody"), "never"]), [to_nobody])


def node_hands_over() -> Any:
    """A node at the top that hands over to its parent."""

    async def leave(state: MessagesState) -> Any:
        return Command(goto="nobody", graph=Command.PARENT)

    graph = StateGraph(MessagesState)
    graph.add_node("leave", leave)
    graph.add_edge(START, "leave")
    return graph.compile()


@pytest.mark.parametrize("build", [hands_over_to_nobody, node_hands_over])
async def test_hand_over_without_a_receiver_is_agent_failed(
    serve: Serve, build: Callable[[], Any]
) -> None:
    """A hand-over without a receiver is the agent's failure, and asks no human."""
    counts = (1, 1) if build is hands_over_to_nobody else (0, 0)
    await serve(build, failed("agent_failed", *counts, retryable=False))
