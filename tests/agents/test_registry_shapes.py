"""Graphs and executors that look like agents: which are served and which refused."""

from collections.abc import Sequence
from typing import Any, TypedDict

import pytest
from langchain_classic.agents import AgentExecutor, create_react_agent, create_tool_calling_agent
from langchain_classic.memory import ConversationBufferMemory
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.tools import BaseTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from app.agents.registry import AgentLoadError, adapt
from app.runs.model import AgentInfo, EarlyStopping
from tests import fakes
from tests.service import served

SERVED = AgentInfo(name="a", kind="", iteration_limit=4)


def model() -> fakes.ScriptedModel:
    """A model that asks for `look` once, then answers."""
    return fakes.ScriptedModel(script=fakes.calls_then_answers("look"))


def tools() -> list[BaseTool]:
    """The tools of the desk."""
    return fakes.ToolDesk().tools()


def executor(extra: Sequence[Any], human: str = "{input}", **options: Any) -> AgentExecutor:
    """A tool-calling executor whose prompt has more in it."""
    prompt = ChatPromptTemplate.from_messages(
        [*extra, ("human", human), MessagesPlaceholder("agent_scratchpad")]
    )
    agent = create_tool_calling_agent(model(), tools(), prompt)
    return AgentExecutor(agent=agent, tools=tools(), **options)


def refusal(thing: Any) -> str:
    """The sentence with which it is refused."""
    with pytest.raises(AgentLoadError) as refused:
        adapt(thing, "shop:orders", SERVED)
    return str(refused.value)


class Numbers(TypedDict):
    """A state that holds no conversation."""

    number: int


def test_graph_without_messages_is_refused() -> None:
    """A graph without messages is refused, with what a graph must have."""
    graph = StateGraph(Numbers)
    graph.add_node("add", lambda state: {"number": state["number"] + 1})
    graph.add_edge(START, "add")
    graph.add_edge("add", END)
    message = refusal(graph.compile())
    assert message.startswith("shop:orders is a graph without 'messages' in its state;")


def test_graph_that_is_not_compiled_is_refused() -> None:
    """A graph that is not compiled is refused, asking for a compiled one."""
    graph = StateGraph(fakes.GraphState)
    graph.add_node("add", lambda state: state)
    graph.add_edge(START, "add")
    message = refusal(graph)
    assert "it is a StateGraph" in message
    assert "compiled LangGraph graph" in message


def test_executor_with_memory_is_refused() -> None:
    """An executor with memory is refused, since all its callers would share it."""
    message = refusal(fakes.build("agent_executor", model(), tools(), memory=_memory()))
    assert message.startswith("shop:orders is an AgentExecutor with memory")
    assert "thread_id" in message


def _memory() -> Any:
    with pytest.warns(DeprecationWarning, match="memory"):
        return ConversationBufferMemory()


def test_executor_with_other_inputs_is_refused() -> None:
    """An executor whose prompt needs more than the question is refused, naming the inputs."""
    message = refusal(executor([("system", "You serve {customer}.")]))
    assert "AgentExecutor whose prompt wants ['customer']" in message


def test_executor_without_input_is_refused() -> None:
    """An executor whose prompt never uses the question is refused."""
    assert "input" in refusal(executor([], human="{question}"))


def test_react_executor_with_other_inputs_is_refused() -> None:
    """The classic ReAct executor follows the same rule."""
    template = (
        "{tools} {tool_names} Serve {customer}.\nQuestion: {input}\nThought:{agent_scratchpad}"
    )
    agent = create_react_agent(model(), tools(), PromptTemplate.from_template(template))
    message = refusal(AgentExecutor(agent=agent, tools=tools()))
    assert "['customer']" in message


@pytest.mark.waits
@pytest.mark.parametrize(
    "extra",
    [
        [("system", "You serve a shop.")],
        [MessagesPlaceholder("chat_history", optional=True)],
        [MessagesPlaceholder("chat_history")],
        [("placeholder", "{chat_history}")],
    ],
    ids=["plain", "optional history", "history", "placeholder"],
)
async def test_accepted_executor_answers(extra: list[Any]) -> None:
    """An executor that passes the start answers a question."""
    async with served({"a": executor(extra)}) as service:
        response = await service.ask("q")
        assert response.status_code == 200, response.text


def test_prompt_with_partial_variables_is_accepted() -> None:
    """Callers need not give what a prompt already has."""
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", "You serve {shop}."),
            ("human", "{input}"),
            MessagesPlaceholder("agent_scratchpad"),
        ]
    ).partial(shop="a shop")
    agent = create_tool_calling_agent(model(), tools(), prompt)
    assert adapt(AgentExecutor(agent=agent, tools=tools()), "s:o", SERVED).info.name == "a"


@pytest.mark.parametrize(
    ("options", "limit", "stopping"),
    [
        ({}, 4, EarlyStopping.GENERATE),
        ({"max_iterations": 2}, 2, EarlyStopping.GENERATE),
        ({"max_iterations": None}, 4, EarlyStopping.GENERATE),
        ({"max_iterations": 15}, 15, EarlyStopping.GENERATE),
        ({"early_stopping_method": "force"}, 4, EarlyStopping.FORCE),
        ({"early_stopping_method": "generate"}, 4, EarlyStopping.GENERATE),
    ],
    ids=str,
)
def test_limit_set_by_hand_counts(
    options: dict[str, Any], limit: int, stopping: EarlyStopping
) -> None:
    """An executor's own limit counts if it was set, not if it is the library's."""
    info = adapt(executor([], **options), "s:o", SERVED).info
    assert (info.iteration_limit, info.early_stopping) == (limit, stopping)


@pytest.mark.parametrize("options", [{"max_iterations": -1}, {"early_stopping_method": "later"}])
def test_meaningless_limit_is_ignored_or_refused(options: dict[str, Any]) -> None:
    """A meaningless limit of an executor is ignored or refused with a sentence."""
    try:
        info = adapt(executor([], **options), "shop:orders", SERVED).info
    except AgentLoadError as refused:
        assert "shop:orders" in str(refused)  # noqa: PT017
    else:
        assert info.iteration_limit == 4


def test_executor_stays_unchanged() -> None:
    """The user's own executor keeps its tools and its limits."""
    mine = executor([], max_iterations=3, max_execution_time=9.0)
    before = list(mine.tools)
    adapt(mine, "s:o", SERVED)
    assert all(now is then for now, then in zip(mine.tools, before, strict=True))
    assert (mine.max_iterations, mine.max_execution_time) == (3, 9.0)


@pytest.mark.parametrize("kind", ["create_agent", "langgraph"])
def test_every_graph_continues_conversations(kind: str) -> None:
    """A graph continues conversations whether or not it has its own checkpointer."""
    without = adapt(fakes.build(kind, model(), tools()), "s:o", SERVED)
    adapted = adapt(
        fakes.build(kind, model(), tools(), checkpointer=InMemorySaver()), "s:o", SERVED
    )
    assert (without.info.conversations, adapted.info.conversations) == (True, True)


@pytest.mark.waits
@pytest.mark.parametrize("kind", ["create_agent", "langgraph"])
async def test_graph_with_its_own_checkpointer_needs_no_thread(kind: str) -> None:
    """Each run of a graph that stores conversations has its own unless it names one."""
    graph = fakes.build(kind, model(), tools(), checkpointer=InMemorySaver())
    async with served({"a": graph}) as service:
        for question in ("first", "second"):
            response = await service.ask(question)
            assert response.status_code == 200, response.text
            assert response.json()["answer"].startswith(f"done: {question}")
            assert response.json()["tool_calls"] == 1
