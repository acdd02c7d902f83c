"""Kind 4: the question, a tool result, a library's sentence and half an answer are no answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ModelCallLimitMiddleware,
    ModelRetryMiddleware,
    ToolCallLimitMiddleware,
    after_agent,
    before_agent,
)
from langchain_classic.agents import AgentExecutor, create_tool_calling_agent
from langchain_core.messages import (
    AIMessage,
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
from tests.ecosystem.served import MODES, WITHOUT_STORE, serving
from tests.ecosystem.serves import serves
from tests.ecosystem.toolbox import TOOLS_PROMPT, answers_with, asking, down, ends_with, weather

LOOK = call("weather", city="Bonn")
NO_ANSWER = failed("agent_failed", retryable=False)
GAVE_NONE = "The agent ended without an answer to the question."
CUT = failed("model_failed", retryable=True)
FILTERED = failed("model_failed", retryable=False)


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
async def test_other_messages_are_no_answer(serve: Serve, build: Callable[[], Any]) -> None:
    """The question, a tool result and a note are no answers."""
    runs = await serve(build, _any_counts(failed("agent_failed", detail=GAVE_NONE)))
    for run in runs:
        assert "answer" not in run.body


async def test_text_beside_unmade_calls_is_no_answer(serve: Serve) -> None:
    """Text of a message whose tool calls were never executed is no answer."""
    await serve(stops_before_its_tools, failed("agent_failed", 1, 0, detail=GAVE_NONE))


def _any_counts(expected: Expected) -> Expected:
    """A message with calls that code wrote by itself may be a turn."""
    return Expected(**{**vars(expected), "iterations": None})


async def test_earlier_answer_is_no_answer(tmp_path: Path) -> None:
    """In a thread, the answer to the question before is no answer to this one."""

    async def answer(state: MessagesState) -> dict[str, Any]:
        text = str(state["messages"][-1].text)
        return {"messages": [AIMessage("It is 4.")]} if "first" in text else {}

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
async def test_failure_of_a_direct_tool_is_no_answer(
    tmp_path: Path, build: Callable[[], Any]
) -> None:
    """The text for the model never reaches the caller as an answer."""
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


@serves("langchain", "`ToolCallLimitMiddleware`", "Ends as at the limit, with the model's answer.")
@pytest.mark.parametrize("behaviour", ["end", "error"])
async def test_sentence_of_a_tool_limit_is_no_answer(serve: Serve, behaviour: str) -> None:
    """The library's sentence is no answer: the model is asked for its own."""
    await serve(lambda: limited_tools(behaviour), limited("concluded", 3, 2))


@serves("langchain", "`ModelCallLimitMiddleware`", "Ends as at the limit, with the model's answer.")
@pytest.mark.parametrize("behaviour", ["end", "error"])
async def test_sentence_of_a_model_limit_is_no_answer(serve: Serve, behaviour: str) -> None:
    """The same holds for a limit on model calls."""
    await serve(lambda: limited_calls(behaviour), limited("concluded", 2, 2))


async def test_continuing_tool_limit_leaves_the_run_to_its_own(serve: Serve) -> None:
    """A limit that only refuses further calls leaves the run to its own limit."""
    await serve(lambda: limited_tools("continue"), limited("concluded", 4, 2), max_iterations=4)


@serves(
    "langchain", "`ModelRetryMiddleware(on_failure='continue')`", "Its sentence is no answer: 500."
)
async def test_sentence_of_a_retry_is_model_failed(serve: Serve) -> None:
    """The library's sentence in place of a failed answer is a failure of the model."""

    def build() -> Any:
        retrying = ModelRetryMiddleware(max_retries=1, initial_delay=0.01, jitter=False)
        return create_agent(down(), [], middleware=[retrying])

    await serve(build, CUT)


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
async def test_cut_answer_is_model_failed(serve: Serve, metadata: Any, expected: Expected) -> None:
    """Half an answer is a failure of the model; a filter would cut it again."""
    await serve(answers_with(metadata=metadata), expected, modes=WITHOUT_STORE)
