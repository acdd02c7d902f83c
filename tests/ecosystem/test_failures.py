"""Kind 5: a failure of a model that the agent handled is not the run's."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    after_agent,
    before_agent,
    wrap_model_call,
)
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import completed, failed
from tests.ecosystem.model import Asked, Line, Model, call, calls
from tests.ecosystem.serves import serves
from tests.ecosystem.toolbox import asking, down, weather

ANSWER = "The real answer"
FAILED = "I read: Tool offline failed: ConnectionError"


def real() -> Model:
    """A model that answers at once."""
    return Model(script=[ANSWER])


def in_a_hook(hook: Any) -> Callable[[], Any]:
    """An agent whose hook asks a model that is down, and does without."""

    async def optional(state: Any, runtime: Any) -> None:
        with suppress(ConnectionError):
            await down().ainvoke("Give it a title.")

    def build() -> Any:
        return create_agent(real(), [], middleware=[hook(optional)])

    return build


def in_wrap_model_call() -> Any:
    """An agent whose model call is preceded by a look into a memory that is down."""

    @wrap_model_call
    async def remember(request: Any, handler: Any) -> Any:
        try:
            await down().ainvoke("What is known?")
        except ConnectionError:
            return await handler(request)
        raise AssertionError("it is down")

    return create_agent(real(), [], middleware=[remember])


def in_a_node_before() -> Any:
    """A classifier with a default, in a node before the agent's."""

    async def classify(state: MessagesState) -> dict[str, Any]:
        try:
            await down().ainvoke("Which desk?")
        except ConnectionError:
            return {}
        raise AssertionError("it is down")

    graph = StateGraph(MessagesState)
    graph.add_node("classify", classify)
    graph.add_node("ask", asking(real()))
    graph.add_edge(START, "classify")
    graph.add_edge("classify", "ask")
    return graph.compile()


def in_a_node_after() -> Any:
    """Follow-up questions after the answer, which the model cannot give."""

    async def follow_up(state: MessagesState) -> dict[str, Any]:
        try:
            await down().ainvoke("What could be asked next?")
        except ConnectionError:
            return {}
        raise AssertionError("it is down")

    graph = StateGraph(MessagesState)
    graph.add_node("ask", asking(real()))
    graph.add_node("follow_up", follow_up)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", "follow_up")
    return graph.compile()


def beside_another() -> Any:
    """Two models asked at the same time; the one that works later fails."""
    slow = Model(script=[ConnectionError("down")], delay_s=0.05)

    async def both(state: MessagesState) -> dict[str, Any]:
        models = (real(), slow)
        replies = await asyncio.gather(*(m.ainvoke("go") for m in models), return_exceptions=True)
        return {"messages": [m for m in replies if isinstance(m, AIMessage)]}

    graph = StateGraph(MessagesState)
    graph.add_node("both", both)
    graph.add_edge(START, "both")
    return graph.compile()


def in_a_parallel_branch() -> Any:
    """An optional branch that fails while the main one answers."""

    async def optional(state: MessagesState) -> dict[str, Any]:
        try:
            await Model(script=[ConnectionError("down")], delay_s=0.05).ainvoke("go")
        except ConnectionError:
            return {}
        raise AssertionError("it is down")

    graph = StateGraph(MessagesState)
    graph.add_node("ask", asking(real()))
    graph.add_node("optional", optional)
    graph.add_edge(START, "ask")
    graph.add_edge(START, "optional")
    return graph.compile()


OPTIONAL = [
    in_a_hook(before_agent), in_a_hook(after_agent), in_wrap_model_call, in_a_node_before,
    in_a_node_after, beside_another, in_a_parallel_branch,
]  # fmt: skip


@pytest.mark.parametrize("build", OPTIONAL)
async def test_failed_optional_call_is_no_failure(serve: Serve, build: Callable[[], Any]) -> None:
    """A failed model call that the agent can do without is not the run's failure."""
    await serve(build, completed(ANSWER))


@serves(
    "langchain", "`ModelFallbackMiddleware`", "A failure that a fallback replaced is not the run's."
)
async def test_fallback_answers(serve: Serve) -> None:
    """A working fallback gives the answer."""

    def build() -> Any:
        return create_agent(down(), [], middleware=[ModelFallbackMiddleware(down(), real())])

    await serve(build, completed(ANSWER))


@serves("langchain", "`ModelRetryMiddleware`", "Retries are attempts of one turn.")
async def test_failed_attempts_are_no_turns(serve: Serve) -> None:
    """Failed attempts are no turns and no failures."""

    def build() -> Any:
        tries = iter(range(9))

        def flaky(asked: Asked) -> Line:
            return ConnectionError("busy") if next(tries) in (0, 1, 3) else reply(asked)

        def reply(asked: Asked) -> Line:
            return ANSWER if asked.results else calls(call("weather", city="Bonn"))

        retrying = ModelRetryMiddleware(max_retries=3, initial_delay=0.01, jitter=False)
        return create_agent(Model(script=[flaky]), [weather], middleware=[retrying])

    await serve(build, completed(ANSWER, 1, 1))


async def test_permanent_failure_is_model_failed(serve: Serve) -> None:
    """If all attempts fail the model has failed."""

    def build() -> Any:
        retrying = ModelRetryMiddleware(
            max_retries=1, initial_delay=0.01, jitter=False, on_failure="error"
        )
        return create_agent(down(), [], middleware=[retrying])

    await serve(build, failed("model_failed", retryable=True))


class City(BaseModel):
    """What is wanted."""

    name: str


@pytest.mark.parametrize("text", ["no json", '{"name": 7', '{"town": "Bonn"}'])
async def test_invalid_json_of_a_provider_is_model_failed(serve: Serve, text: str) -> None:
    """Structured output of the provider that does not fit is the model's failure."""

    def build() -> Any:
        return create_agent(Model(script=[text]), [], response_format=ProviderStrategy(City))

    detail = "The model's structured output does not fit what the agent asks for."
    await serve(build, failed("model_failed", None, 0, retryable=True, detail=detail))


async def test_exception_of_a_node_is_agent_failed(serve: Serve) -> None:
    """An exception of a node itself is the agent's failure."""

    async def divide(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(str(1 / 0))]}

    def build() -> Any:
        graph = StateGraph(MessagesState)
        graph.add_node("divide", divide)
        graph.add_edge(START, "divide")
        return graph.compile()

    await serve(build, failed("agent_failed", retryable=False))


async def test_exception_after_a_handled_failure_is_agent_failed(serve: Serve) -> None:
    """An agent that handles a model's failure, and then fails itself, is the one that failed."""

    async def ask(state: MessagesState) -> dict[str, Any]:
        with suppress(ConnectionError):
            await down().ainvoke("go")
        return {"messages": [AIMessage(str(1 / 0))]}

    def build() -> Any:
        graph = StateGraph(MessagesState)
        graph.add_node("ask", ask)
        graph.add_edge(START, "ask")
        return graph.compile()

    await serve(build, failed("agent_failed", retryable=False))
