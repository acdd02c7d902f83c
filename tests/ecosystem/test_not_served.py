"""Unservable agents are refused at start, in one sentence."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_classic.agents import AgentExecutor, create_tool_calling_agent
from langchain_classic.memory import ConversationBufferMemory
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langgraph.func import entrypoint
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from app.agents import registry
from app.settings import Settings
from tests.ecosystem.model import Model
from tests.ecosystem.serves import does_not_serve
from tests.ecosystem.toolbox import TOOLS_PROMPT, nothing, weather

pytestmark = pytest.mark.filterwarnings(
    "ignore::langchain_core._api.deprecation.LangChainDeprecationWarning"
)
MODEL = Model(script=["never"])


def refused(build: Callable[[], Any]) -> str:
    """The sentence with which an agent is refused."""
    with pytest.raises(registry.AgentLoadError) as refusal:
        registry.adapt(build(), "shop:agent", Settings().served("agent"))
    sentence = str(refusal.value)
    assert "shop:agent" in sentence
    assert sentence.endswith(".")
    return sentence


@does_not_serve(
    "langchain-classic",
    "`AgentExecutor(memory=…)`",
    "Refused at the start: callers would share it.",
)
def test_executor_with_memory_is_refused() -> None:
    """All callers would share the memory."""

    def build() -> Any:
        agent = create_tool_calling_agent(MODEL, [weather], TOOLS_PROMPT)
        return AgentExecutor(agent=agent, tools=[weather], memory=ConversationBufferMemory())

    assert "memory" in refused(build)


@does_not_serve(
    "langchain-classic", "a prompt that wants more than `input`", "Refused at the start, by name."
)
def test_executor_with_more_inputs_is_refused() -> None:
    """No caller would give the other inputs of the prompt."""

    def build() -> Any:
        prompt = ChatPromptTemplate.from_messages(
            [("system", "{tenant}"), ("human", "{input}"), ("placeholder", "{agent_scratchpad}")]
        )
        agent = create_tool_calling_agent(MODEL, [weather], prompt)
        return AgentExecutor(agent=agent, tools=[weather])

    assert "tenant" in refused(build)


@does_not_serve("langgraph", "a graph without `messages`", "Refused at the start.")
def test_graph_without_messages_is_refused() -> None:
    """The service asks a graph with a message."""

    class Count(TypedDict):
        count: int

    def build() -> Any:
        graph = StateGraph(Count)
        graph.add_node("count", nothing)
        graph.add_edge(START, "count")
        return graph.compile()

    assert "messages" in refused(build)


@does_not_serve("langgraph", "`@entrypoint`", "Refused at the start: it has no state of messages.")
def test_entrypoint_is_refused() -> None:
    """A functional workflow has no state."""

    def build() -> Any:
        @entrypoint()
        async def workflow(asked: Any) -> str:
            return "an answer"

        return workflow

    refused(build)


@does_not_serve("langchain-core", "a chain or a model that is no agent", "Refused at the start.")
@pytest.mark.parametrize(
    "thing", [MODEL, RunnableLambda(str), create_agent], ids=["model", "chain", "function"]
)
def test_objects_that_are_no_agents_are_refused(thing: Any) -> None:
    """A model, a chain and a function with arguments are no agents."""
    assert "no agent" in refused(lambda: thing)
