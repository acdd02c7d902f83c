"""Kind 4: which message is the answer to the question."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    PIIMiddleware,
    before_model,
)
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
)
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import completed, failed
from tests.ecosystem.model import Model, call, calls
from tests.ecosystem.reports import assert_agree
from tests.ecosystem.served import WITHOUT_STORE, serving
from tests.ecosystem.serves import serves
from tests.ecosystem.toolbox import answers_with, asking, ends_with, loop_of, weather

LOOK = call("weather", city="Bonn")
PICTURE = {"type": "image", "base64": "iVBORw0KGgo=", "mime_type": "image/png"}


@serves(
    "langchain", "tools with `return_direct`", "Their result is the answer; their failure is not."
)
async def test_direct_result_is_the_answer(serve: Serve) -> None:
    """The result of a `return_direct` tool is the answer."""

    @tool(return_direct=True)
    async def ticket(number: str) -> str:
        """Print a ticket."""
        return f"Ticket {number}"

    def build() -> Any:
        return create_agent(Model(script=[calls(call("ticket", number="7"))]), [ticket])

    await serve(build, completed("Ticket 7", 1, 1))


@pytest.mark.parametrize(
    "metadata",
    [
        {"finish_reason": "stop"},
        {"finish_reason": "STOP"},
        {"stop_reason": "end_turn"},
        {"stop_reason": "stop_sequence"},
        {"done": True, "done_reason": "stop"},
        {"finish_reason": "eos"},
    ],
    ids=lambda value: str(list(value.values())[-1]),
)
async def test_whole_answer_is_an_answer(serve: Serve, metadata: Any) -> None:
    """An answer that ended by itself is an answer, whatever its provider calls that."""
    await serve(
        answers_with("A sentence.", metadata), completed("A sentence."), modes=WITHOUT_STORE
    )


NO = "I will not help with that."


@serves("langchain", "a refusal in the provider's own form", "An answer with `refused: true`.")
@pytest.mark.parametrize(
    "build",
    [
        answers_with("", additional_kwargs={"refusal": NO}),
        answers_with([{"type": "refusal", "refusal": NO}]),
        answers_with("", {"finish_reason": "stop"}, additional_kwargs={"refusal": NO}),
    ],
    ids=["field", "block", "field and reason"],
)
async def test_refusal_is_a_marked_answer(serve: Serve, build: Callable[[], Any]) -> None:
    """A refusal that the provider returns as a message of its own is an answer, and marked."""
    await serve(build, completed(NO, refused=True))


def blocks_input() -> Any:
    """Blocks a question with an address in it."""
    block = PIIMiddleware("email", strategy="block", apply_to_input=True)
    return create_agent(Model(script=["never"]), [], middleware=[block])


def blocks_output() -> Any:
    """Blocks an answer with an address in it."""
    block = PIIMiddleware("email", strategy="block", apply_to_output=True, apply_to_input=False)
    return create_agent(Model(script=["Ask bob@example.com."]), [], middleware=[block])


def blocks_results() -> Any:
    """Blocks a result of a tool with an address in it."""

    @tool
    def customer(number: str) -> str:
        """Look a customer up."""
        return "It is ann@example.com"

    block = PIIMiddleware(
        "email", strategy="block", apply_to_tool_results=True, apply_to_input=False
    )
    model = Model(script=[calls(call("customer", number="1")), "never"])
    return create_agent(model, [customer], middleware=[block])


@serves("langchain", "`PIIMiddleware(strategy='block')`", "A refusal: 200 with `refused: true`.")
@pytest.mark.parametrize(
    ("build", "counts"), [(blocks_input, (0, 0)), (blocks_output, (0, 0)), (blocks_results, (1, 1))]
)
async def test_blocking_middleware_gives_a_refusal(
    serve: Serve, build: Callable[[], Any], counts: tuple[int, int]
) -> None:
    """A middleware that blocks gives a refusal, without the blocked text."""
    expected = completed(None, *counts, refused=True)
    for run in await serve(build, expected, question="I am eve@example.com"):
        assert run.body["answer"]
        assert "example.com" not in run.body["answer"]


def pictures() -> Any:
    """A model that answers with a picture alone."""
    return answers_with([PICTURE])()


def draws_directly() -> Any:
    """A direct tool that returns a picture alone."""

    @tool(return_direct=True)
    def draw(what: str) -> list[dict[str, Any]]:
        """Draw."""
        return [PICTURE]

    return create_agent(Model(script=[calls(call("draw", what="a map"))]), [draw])


@pytest.mark.parametrize(("build", "counts"), [(pictures, (0, 0)), (draws_directly, (1, 1))])
async def test_blocks_without_text_are_output(
    serve: Serve, build: Callable[[], Any], counts: tuple[int, int]
) -> None:
    """Blocks that are not text are an answer: `output` has them."""
    for run in await serve(build, completed("", *counts)):
        assert run.body["output"] == [PICTURE]


async def test_text_blocks_are_the_answer(serve: Serve) -> None:
    """The answer of text blocks is their text."""
    build = answers_with([{"type": "text", "text": "One. "}, {"type": "text", "text": "Two."}])
    await serve(build, completed("One. Two."))


async def test_human_message_with_an_agents_name_is_its_answer(serve: Serve) -> None:
    """A last human message with an agent's name is that agent's answer."""
    message = HumanMessage("The report is ready.", name="writer")
    await serve(lambda: ends_with(message), completed("The report is ready."))


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "from a dict"},
        ("ai", "from a dict"),
        AIMessage("from a dict"),
    ],
    ids=["dict", "pair", "message"],
)
async def test_messages_of_any_form(serve: Serve, message: Any) -> None:
    """Messages may be dicts or pairs, in a state that stores them as they are."""

    class Loose(TypedDict):
        messages: list[Any]

    async def write(state: Loose) -> dict[str, Any]:
        return {"messages": [*state["messages"], message]}

    def build() -> Any:
        graph = StateGraph(Loose)
        graph.add_node("write", write)
        graph.add_edge(START, "write")
        return graph.compile()

    await serve(build, completed("from a dict"))


@serves("langgraph", "a graph that answers in a key of its own", "`output` has what changed.")
async def test_answer_in_another_key_is_output(serve: Serve) -> None:
    """A graph whose result is in another key of its state has that as its output."""

    class Report(MessagesState):
        report: str

    class Result(TypedDict):
        report: str

    async def write(state: Report) -> dict[str, Any]:
        return {"report": "42"}

    def build() -> Any:
        graph = StateGraph(Report, output_schema=Result)
        graph.add_node("write", write)
        graph.add_edge(START, "write")
        return graph.compile()

    for run in await serve(build, completed(None)):
        assert run.body["output"] == {"report": "42"}
        assert run.body["answer"] in ("", "42")


def broken_after(message: Any) -> Callable[[], Any]:
    """An agent whose model breaks after a tool had an effect."""

    @tool
    def send(text: str) -> str:
        """Send a letter."""
        return "sent"

    model = Model(script=[calls(call("send", text="hello")), message])
    return lambda: create_agent(model, [send])


@pytest.mark.parametrize(
    "line",
    [
        ConnectionError("down"),
        AIMessage(""),
        AIMessage([{"type": "thinking", "thinking": "Done."}]),
    ],
    ids=["error", "nothing", "thoughts"],
)
async def test_failure_after_a_tool_is_retryable_with_a_key_only(tmp_path: Path, line: Any) -> None:
    """A failure after a tool was called is retryable only with a key."""
    build = broken_after(line)
    async with serving({"a": build(), "b": build()}, tmp_path) as service:
        without = await service.ask("a")
        assert_agree([without], failed("model_failed", 1, 1, retryable=False))
        with_key = await service.ask("b", key="k1")
        assert_agree([with_key], failed("model_failed", 1, 1, retryable=True))


async def test_last_of_many_messages_is_the_answer(serve: Serve) -> None:
    """Of several messages from a node the last one is the answer."""
    messages: list[BaseMessage] = [AIMessage("One."), AIMessage("Two.")]
    await serve(lambda: ends_with(*messages), completed("Two."))


async def test_rewritten_answer_is_the_answer(serve: Serve) -> None:
    """The text that a last node makes of the answer is the answer; the original is not."""

    def build() -> Any:
        async def shout(state: MessagesState) -> dict[str, Any]:
            last = state["messages"][-1]
            return {"messages": [AIMessage(str(last.text).upper(), id=last.id)]}

        graph = loop_of(asking(Model(script=["quiet"])), [weather])
        builder = StateGraph(MessagesState)
        builder.add_node("agent", graph.compile())
        builder.add_node("shout", shout)
        builder.add_edge(START, "agent")
        builder.add_edge("agent", "shout")
        return builder.compile()

    await serve(build, completed("QUIET"))


async def test_message_of_a_guard_is_the_answer(serve: Serve) -> None:
    """The message of a guard that ends the run is the answer."""

    @before_model(can_jump_to=["end"])
    async def guard(state: Any, runtime: Any) -> dict[str, Any]:
        return {"jump_to": "end", "messages": [AIMessage("We are closed.")]}

    def build() -> Any:
        return create_agent(Model(script=["never"]), [], middleware=[guard])

    await serve(build, completed("We are closed."))
