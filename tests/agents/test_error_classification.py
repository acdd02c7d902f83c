"""Exceptions of foreign code are classified; the real libraries raise them here."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ModelCallLimitMiddleware,
    PIIMiddleware,
    ToolCallLimitMiddleware,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_classic.agents import AgentExecutor, create_react_agent
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser, StrOutputParser
from langchain_core.output_parsers.openai_tools import PydanticToolsParser
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai.chat_models.base import OpenAIRefusalError
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel

from app.agents import error_classification
from app.agents.errors import FilteredAnswer, IncompleteAnswer
from examples.seed_agent import PROMPT
from tests import utterances as u


class Order(BaseModel):
    number: int


@tool
def look(order: str) -> str:
    """Look at an order."""
    return order


CALLS = u.whole("", "tool_calls", tool_calls=[u.call()])
WRONG: Any = {"name": "Order", "args": {"number": "many"}, "id": "c1", "type": "tool_call"}
WRONG_CALL = u.whole("", "tool_calls", tool_calls=[WRONG])
TWO_CALLS = u.whole("", "tool_calls", tool_calls=[WRONG, {**WRONG, "id": "c2"}])
REFUSAL = AIMessage(
    "",
    additional_kwargs={"refusal": "I will not."},
    response_metadata={"finish_reason": "stop", "model_provider": "openai"},
)
CUT_BY_FILTER = u.whole("", "content_filter")
QUESTION: Any = {"messages": [{"role": "user", "content": "Write to a@b.example"}]}


def model(*takes: AIMessage) -> u.Utters:
    return u.Utters(takes=list(takes), provider="somebody")


def agent(take: AIMessage, **options: Any) -> Callable[[], object]:
    return lambda: create_agent(model(take), [look], **options).invoke(QUESTION)


def chain(take: AIMessage, *steps: Any) -> Callable[[], object]:
    def run() -> object:
        runnable: Any = model(take)
        for step in steps:
            runnable = runnable | step
        return runnable.invoke("hi")

    return run


def react() -> object:
    chat_model = model(u.whole("I do not know what to do."))
    runnable = create_react_agent(chat_model, [look], PROMPT)
    executor: Any = AgentExecutor(agent=runnable, tools=[look], stream_runnable=False)
    return executor.invoke({"input": "hi"})


def unending() -> object:
    graph = StateGraph(MessagesState)
    graph.add_node("again", lambda _: {"messages": [AIMessage("again")]})
    graph.add_edge(START, "again")
    graph.add_edge("again", "again")
    return graph.compile().invoke(QUESTION, {"recursion_limit": 3})


def wrapped(run: Callable[[], object]) -> Callable[[], object]:
    def outer() -> object:
        try:
            return run()
        except Exception as inner:
            raise RuntimeError("The desk is closed.") from inner

    return outer


def replaced(run: Callable[[], object]) -> Callable[[], object]:
    def outer() -> object:
        try:
            return run()
        except ValueError:
            raise KeyError("desk") from None

    return outer


def raises(error: BaseException) -> Callable[[], object]:
    def run() -> object:
        raise error

    return run


def raised(run: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever the libraries raise
        run()
    return caught.value


def grouped(error: Exception) -> Exception:
    return ExceptionGroup("of a branch", [error])


def own(message: BaseMessage) -> object:
    raise ValueError(f"The agent itself did not like it: {message.text}")


JSON_OF_ORDER: Any = PydanticOutputParser(pydantic_object=Order)
BAD_JSON = agent(u.whole('{"number": '), response_format=ProviderStrategy(Order))
MODELS: dict[str, Callable[[], object]] = {
    "bad JSON for the provider's strategy": BAD_JSON,
    "JSON that does not fit": agent(
        u.whole('{"number": "many"}'), response_format=ProviderStrategy(Order)
    ),
    "arguments that do not fit": agent(
        WRONG_CALL, response_format=ToolStrategy(Order, handle_errors=False)
    ),
    "two answers": agent(TWO_CALLS, response_format=ToolStrategy(Order, handle_errors=False)),
    "a ReAct parse error": react,
    "a JSON parser": chain(u.whole("no JSON"), JsonOutputParser()),
    "a pydantic parser": chain(u.whole("{}"), JSON_OF_ORDER),
    "a parser of calls": chain(WRONG_CALL, PydanticToolsParser(tools=[Order])),
    "a cut answer": raises(IncompleteAnswer("cut")),
    "wrapped": wrapped(BAD_JSON),
    "in a group": raises(grouped(raised(BAD_JSON))),
}
LIMITS: dict[str, Callable[[], object]] = {
    "model calls": agent(
        CALLS, middleware=[ModelCallLimitMiddleware(run_limit=1, exit_behavior="error")]
    ),
    "tool calls": agent(
        CALLS, middleware=[ToolCallLimitMiddleware(run_limit=1, exit_behavior="error")]
    ),
    "steps": unending,
    "wrapped": wrapped(unending),
}
BLOCKS: dict[str, Callable[[], object]] = {
    "of the question": agent(CALLS, middleware=[PIIMiddleware("email", strategy="block")]),
    "of the answer": agent(
        u.whole("Ask c@d.example"),
        middleware=[
            PIIMiddleware("email", strategy="block", apply_to_input=False, apply_to_output=True)
        ],
    ),
}
FILTERED: dict[str, Callable[[], object]] = {
    "an answer": raises(FilteredAnswer("cut")),
    "an answer that was to be structured": agent(
        CUT_BY_FILTER, response_format=ProviderStrategy(Order)
    ),
    "wrapped": wrapped(raises(FilteredAnswer("cut"))),
}
REFUSED: dict[str, Callable[[], object]] = {
    "the provider's strategy": agent(REFUSAL, response_format=ProviderStrategy(Order)),
    "a parser of calls": chain(REFUSAL, PydanticToolsParser(tools=[Order])),
    "openai's own": raises(OpenAIRefusalError("I will not.")),
}
NONE: dict[str, Callable[[], object]] = {
    "the agent's own": chain(u.whole("fine"), RunnableLambda(own), StrOutputParser()),
    "a tool's": raises(ZeroDivisionError("division by zero")),
    "handled, and another raised": replaced(chain(u.whole("{}"), JSON_OF_ORDER)),
    "Python's own limit": raises(RecursionError("maximum recursion depth exceeded")),
}
KINDS: dict[str, tuple[Callable[[BaseException], object], dict[str, Callable[[], object]]]] = {
    "models": (error_classification.is_model_error, MODELS),
    "limits": (error_classification.is_library_limit, LIMITS),
    "blocks": (error_classification.is_guardrail_block, BLOCKS),
    "filtered": (error_classification.is_filtered, FILTERED),
    "refused": (error_classification.refusal_in, REFUSED),
}


@pytest.mark.parametrize("kind", KINDS)
def test_known_kinds_are_recognised(kind: str) -> None:
    """Each kind is recognised, inside any library's or agent's own exception."""
    recognises, runs = KINDS[kind]
    assert {row: bool(recognises(raised(run))) for row, run in runs.items()} == dict.fromkeys(
        runs, True
    )


@pytest.mark.parametrize("kind", KINDS)
def test_own_and_handled_exceptions_have_no_kind(kind: str) -> None:
    """An exception that the agent raised itself or has handled is of no kind."""
    recognises, _ = KINDS[kind]
    others = {"models": (LIMITS, BLOCKS), "limits": (MODELS, BLOCKS, REFUSED)}
    rest = others.get(kind, (LIMITS,))
    runs = {**NONE, **{row: run for table in rest for row, run in table.items()}}
    assert {row: bool(recognises(raised(run))) for row, run in runs.items()} == dict.fromkeys(
        runs, False
    )


def test_refusal_of_structured_output_has_its_text() -> None:
    """A refusal in place of structured output has its text."""
    texts = {row: error_classification.refusal_in(raised(run)) for row, run in REFUSED.items()}
    assert texts == dict.fromkeys(REFUSED, "I will not.")


def test_streaming_parser_is_not_blamed() -> None:
    """A parser that passes a stream on is not blamed for an exception above it."""
    chat_model: Any = u.Utters(takes=[[u.word("fine"), u.end("stop")]], streaming=True)
    runnable = chat_model | RunnableLambda(own) | StrOutputParser()
    error = raised(lambda: list(runnable.stream("hi")))
    assert "did not like it: fine" in str(error)
    assert not error_classification.is_model_error(error)
