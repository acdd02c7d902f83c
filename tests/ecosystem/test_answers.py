"""Kind 4: an answer is what this agent says to this question, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ModelCallLimitMiddleware,
    ModelRetryMiddleware,
    PIIMiddleware,
    ToolCallLimitMiddleware,
    after_agent,
    before_agent,
    before_model,
)
from langchain_classic.agents import AgentExecutor, create_tool_calling_agent
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.prebuilt import ToolNode

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import Expected, completed, failed, limited
from tests.ecosystem.model import Model, call, calls, last_result, loops
from tests.ecosystem.reports import assert_agree
from tests.ecosystem.served import MODES, serving
from tests.ecosystem.serves import serves
from tests.ecosystem.toolbox import TOOLS_PROMPT, asking, down, loop_of, weather

LOOK = call("weather", city="Bonn")
PICTURE = {"type": "image", "base64": "iVBORw0KGgo=", "mime_type": "image/png"}
NO_ANSWER = failed("agent_failed", retryable=False)
GAVE_NONE = "The agent ended without an answer to the question."
CUT = failed("model_failed", retryable=True)
FILTERED = failed("model_failed", retryable=False)


def ends_with(*messages: Any) -> Any:
    """A graph of plain code whose last step writes these messages."""

    async def write(state: MessagesState) -> dict[str, Any]:
        return {"messages": list(messages)}

    graph = StateGraph(MessagesState)
    graph.add_node("write", write)
    graph.add_edge(START, "write")
    return graph.compile()


def jumps_to_the_end() -> Any:
    """A guard that ends the run and says nothing."""

    @before_agent(can_jump_to=["end"])
    async def guard(state: Any, runtime: Any) -> dict[str, Any]:
        return {"jump_to": "end"}

    return create_agent(Model(script=["never"]), [], middleware=[guard])


def writes_nothing() -> Any:
    """A graph whose messages are its input only."""
    return ends_with()


def ends_with_a_row() -> Any:
    """A graph that ends with the row of a tool that no turn called."""
    request = {**LOOK, "id": "1"}
    return ends_with(AIMessage("", tool_calls=[request]), ToolMessage("row", tool_call_id="1"))


def ends_with_a_note() -> Any:
    """A graph that ends with an internal note."""
    return ends_with(SystemMessage("summary of this conversation"))


def asks_back() -> Any:
    """A graph that ends with a human message of nobody's name."""
    return ends_with(HumanMessage("Shall I go on?"))


def stops_before_its_tools() -> Any:
    """A graph that ends where its model asked for tools, with text beside them."""
    model = Model(script=[calls(LOOK, text="Let me look.")]).bind_tools([weather])
    graph = StateGraph(MessagesState)
    graph.add_node("ask", asking(model))
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    return graph.compile()


def removes_its_answer() -> Any:
    """An agent that empties its conversation at the end."""

    @after_agent
    async def tidy(state: Any, runtime: Any) -> dict[str, Any]:
        return {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES)]}

    return create_agent(Model(script=["The answer is 4."]), [], middleware=[tidy])


@serves("langgraph", "a graph that ends without a message of its own", "500 `agent_failed`.")
@pytest.mark.parametrize(
    "build",
    [
        jumps_to_the_end, writes_nothing, ends_with_a_row, ends_with_a_note, asks_back,
        removes_its_answer,
    ],
)  # fmt: skip
async def test_what_is_no_answer(serve: Serve, build: Callable[[], Any]) -> None:
    """The question, a tool's row and a note are no answers."""
    runs = await serve(build, _any_counts(failed("agent_failed", detail=GAVE_NONE)))
    for run in runs:
        assert "answer" not in run.body


async def test_text_beside_calls_that_were_not_made(serve: Serve) -> None:
    """Text of a message whose tool calls were never executed is no answer."""
    await serve(stops_before_its_tools, failed("agent_failed", 1, 0, detail=GAVE_NONE))


def _any_counts(expected: Expected) -> Expected:
    """A message with calls that code wrote by itself may be a turn."""
    return Expected(**{**vars(expected), "iterations": None})


async def test_an_answer_of_an_earlier_question(tmp_path: Path) -> None:
    """In a thread, what was said to the question before is no answer to this one."""

    async def answer(state: MessagesState) -> dict[str, Any]:
        said = str(state["messages"][-1].text)
        return {"messages": [AIMessage("It is 4.")]} if "first" in said else {}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    agents = {"ours": graph.compile(), "saved": graph.compile(checkpointer=InMemorySaver())}
    async with serving(agents, tmp_path) as service:
        for agent in agents:
            first = await service.ask(agent, question="the first", thread_id="t")
            assert_agree([first], completed("It is 4."))
            for mode in MODES:
                again = await service.ask(agent, mode, question="the second", thread_id="t")
                assert_agree([again], failed("agent_failed", detail=GAVE_NONE))


@serves(
    "langchain", "tools with return_direct", "Their result is the answer; their failure is not."
)
async def test_a_direct_result(serve: Serve) -> None:
    """The result of a `return_direct` tool is the answer."""

    @tool(return_direct=True)
    async def ticket(number: str) -> str:
        """Print a ticket."""
        return f"Ticket {number}"

    def build() -> Any:
        return create_agent(Model(script=[calls(call("ticket", number="7"))]), [ticket])

    await serve(build, completed("Ticket 7", 1, 1))


@tool(return_direct=True)
async def printer(number: str) -> str:
    """Print a ticket."""
    raise ConnectionError("out of paper")


def prints_directly() -> Any:
    """An agent of create_agent."""
    model = Model(script=[calls(call("printer", number="7")), last_result()])
    return create_agent(model, [printer])


def prints_in_a_graph() -> Any:
    """A hand-made graph that ends after a direct tool."""
    model = Model(script=[calls(call("printer", number="7")), last_result()])
    graph = StateGraph(MessagesState)
    graph.add_node("ask", asking(model.bind_tools([printer])))
    graph.add_node("tools", ToolNode([printer]))
    graph.add_edge(START, "ask")
    graph.add_edge("ask", "tools")
    return graph.compile()


def prints_in_an_executor() -> Any:
    """A classic executor."""
    model = Model(script=[calls(call("printer", number="7")), last_result()])
    agent = create_tool_calling_agent(model, [printer], TOOLS_PROMPT)
    return AgentExecutor(agent=agent, tools=[printer])


@pytest.mark.parametrize("build", [prints_directly, prints_in_a_graph, prints_in_an_executor])
async def test_a_direct_tool_that_fails(tmp_path: Path, build: Callable[[], Any]) -> None:
    """The words for the model never reach the caller as an answer."""
    async with serving({mode: build() for mode in MODES}, tmp_path) as service:
        for mode in MODES:
            run = await service.ask(mode, mode)
            assert run.body.get("answer") != "Tool printer failed: ConnectionError"
            assert run.outcomes == {"printer": ["tool_error"]}
            expected = completed(None, 1, 1)
            if "code" in run.body:
                expected = failed(run.body["code"], 1, 1)
            assert_agree([run], expected)


def limited_tools(behaviour: Any) -> Any:
    """An agent with a limit of the library's own on its tool calls."""
    own = ToolCallLimitMiddleware(run_limit=2, exit_behavior=behaviour)
    return create_agent(Model(script=[loops(LOOK)]), [weather], middleware=[own])


def limited_calls(behaviour: Any) -> Any:
    """An agent with a limit of the library's own on its model calls."""
    own = ModelCallLimitMiddleware(run_limit=2, exit_behavior=behaviour)
    return create_agent(Model(script=[loops(LOOK)]), [weather], middleware=[own])


@serves("langchain", "ToolCallLimitMiddleware", "Ends as at the limit, with the model's answer.")
@pytest.mark.parametrize("behaviour", ["end", "error"])
async def test_a_limit_on_tool_calls(serve: Serve, behaviour: str) -> None:
    """The library's sentence is no answer: the model is asked for its own."""
    await serve(lambda: limited_tools(behaviour), limited("concluded", 3, 2))


@serves("langchain", "ModelCallLimitMiddleware", "Ends as at the limit, with the model's answer.")
@pytest.mark.parametrize("behaviour", ["end", "error"])
async def test_a_limit_on_model_calls(serve: Serve, behaviour: str) -> None:
    """The same for a limit on model calls."""
    await serve(lambda: limited_calls(behaviour), limited("concluded", 2, 2))


async def test_a_tool_limit_that_goes_on(serve: Serve) -> None:
    """A limit that only refuses further calls leaves the run to its own limit."""
    await serve(lambda: limited_tools("continue"), limited("concluded", 4, 2), max_iterations=4)


@serves("langchain", "ModelRetryMiddleware(on_failure='continue')", "Its sentence is no answer.")
async def test_the_sentence_of_a_retry(serve: Serve) -> None:
    """What the library writes in place of an answer that failed is a failure of the model."""

    def build() -> Any:
        retrying = ModelRetryMiddleware(max_retries=1, initial_delay=0.01, jitter=False)
        return create_agent(down(), [], middleware=[retrying])

    await serve(build, CUT)


def says(text: Any = "Half of a sent", metadata: Any = None, **more: Any) -> Callable[[], Any]:
    """An agent whose provider reports this of its answer."""
    message = AIMessage(text, response_metadata=metadata or {}, **more)
    return lambda: create_agent(Model(script=[message]), [])


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"finish_reason": "length"}, CUT),
        ({"finish_reason": "MAX_TOKENS"}, CUT),
        ({"stop_reason": "max_tokens"}, CUT),
        ({"stop_reason": "model_context_window_exceeded"}, CUT),
        ({"done": True, "done_reason": "length"}, CUT),
        ({"finish_reason": "content_filter"}, FILTERED),
        ({"finish_reason": "SAFETY"}, FILTERED),
        ({"finish_reason": "PROHIBITED_CONTENT"}, FILTERED),
        ({"finish_reason": "RECITATION"}, FILTERED),
        ({"stop_reason": "refusal"}, FILTERED),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)  # fmt: skip
async def test_an_answer_that_was_cut(serve: Serve, metadata: Any, expected: Expected) -> None:
    """Half of an answer is a failure of the model; one that a filter cut will be cut again."""
    await serve(says(metadata=metadata), expected, modes=("sync", "stream"))


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
async def test_an_answer_that_is_whole(serve: Serve, metadata: Any) -> None:
    """An answer that ended by itself is an answer, whatever its provider calls that."""
    await serve(says("A sentence.", metadata), completed("A sentence."), modes=("sync", "stream"))


NO = "I will not help with that."


@serves("langchain", "a refusal of the provider's own form", "An answer, with `refused: true`.")
@pytest.mark.parametrize(
    "build",
    [
        says("", additional_kwargs={"refusal": NO}),
        says([{"type": "refusal", "refusal": NO}]),
        says("", {"finish_reason": "stop"}, additional_kwargs={"refusal": NO}),
    ],
    ids=["field", "block", "field and reason"],
)
async def test_a_refusal(serve: Serve, build: Callable[[], Any]) -> None:
    """A refusal that the provider gives as a message of its own is an answer, and marked."""
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


@serves("langchain", "PIIMiddleware(strategy='block')", "Told as a refusal: 200, `refused: true`.")
@pytest.mark.parametrize(
    ("build", "counts"), [(blocks_input, (0, 0)), (blocks_output, (0, 0)), (blocks_results, (1, 1))]
)
async def test_a_middleware_that_blocks(
    serve: Serve, build: Callable[[], Any], counts: tuple[int, int]
) -> None:
    """What a middleware blocks is told as a refusal, without what it blocked."""
    expected = completed(None, *counts, refused=True)
    for run in await serve(build, expected, question="I am eve@example.com"):
        assert run.body["answer"]
        assert "example.com" not in run.body["answer"]


def pictures() -> Any:
    """A model that answers with a picture alone."""
    return says([PICTURE])()


def draws_directly() -> Any:
    """A direct tool that returns a picture alone."""

    @tool(return_direct=True)
    def draw(what: str) -> list[dict[str, Any]]:
        """Draw."""
        return [PICTURE]

    return create_agent(Model(script=[calls(call("draw", what="a map"))]), [draw])


@pytest.mark.parametrize(("build", "counts"), [(pictures, (0, 0)), (draws_directly, (1, 1))])
async def test_blocks_alone(
    serve: Serve, build: Callable[[], Any], counts: tuple[int, int]
) -> None:
    """Blocks that are no text are an answer: `output` has them."""
    for run in await serve(build, completed("", *counts)):
        assert run.body["output"] == [PICTURE]


async def test_text_and_blocks(serve: Serve) -> None:
    """Of text blocks the answer is their text."""
    build = says([{"type": "text", "text": "One. "}, {"type": "text", "text": "Two."}])
    await serve(build, completed("One. Two."))


async def test_a_human_message_with_a_name(serve: Serve) -> None:
    """A last human message that carries an agent's name is that agent's answer."""
    said = HumanMessage("The report is ready.", name="writer")
    await serve(lambda: ends_with(said), completed("The report is ready."))


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
    """Messages may be dicts or pairs, in a state that keeps them as they are."""

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
async def test_an_answer_in_another_key(serve: Serve) -> None:
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
async def test_a_failure_after_an_effect(tmp_path: Path, line: Any) -> None:
    """A failure after a tool was called is retryable only with a key."""
    build = broken_after(line)
    async with serving({"a": build(), "b": build()}, tmp_path) as service:
        without = await service.ask("a")
        assert_agree([without], failed("model_failed", 1, 1, retryable=False))
        with_key = await service.ask("b", key="k1")
        assert_agree([with_key], failed("model_failed", 1, 1, retryable=True))


async def test_an_answer_of_many_messages(serve: Serve) -> None:
    """Of several messages that a node wrote the last one is the answer."""
    messages: list[BaseMessage] = [AIMessage("One."), AIMessage("Two.")]
    await serve(lambda: ends_with(*messages), completed("Two."))


async def test_an_answer_that_is_rewritten(serve: Serve) -> None:
    """What a last node makes of the answer is the answer; what it replaced is not."""

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


async def test_a_guard_that_answers(serve: Serve) -> None:
    """A guard that ends the run with a message of its own has answered."""

    @before_model(can_jump_to=["end"])
    async def guard(state: Any, runtime: Any) -> dict[str, Any]:
        return {"jump_to": "end", "messages": [AIMessage("We are closed.")]}

    def build() -> Any:
        return create_agent(Model(script=["never"]), [], middleware=[guard])

    await serve(build, completed("We are closed."))
