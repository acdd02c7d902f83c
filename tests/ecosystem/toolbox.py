"""Tools and small graphs that the agents of these tests are made of."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool, tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from tests.ecosystem.model import Model

TOOLS_PROMPT = ChatPromptTemplate.from_messages(
    [("system", "You travel."), ("human", "{input}"), ("placeholder", "{agent_scratchpad}")]
)


@tool
async def weather(city: str) -> str:
    """Look up the weather of a city."""
    await asyncio.sleep(0)
    return f"sun in {city}"


@tool
def stock(item: str) -> str:
    """Look up how many of an item there are."""
    return f"12 of {item}"


@tool
async def offline(city: str) -> str:
    """Ask a station that is down."""
    raise ConnectionError(f"station of {city} is down")


async def said_by(agent: Any, question: str = "go", **config: Any) -> str:
    """What an agent answers, asked by code of another agent."""
    state = await agent.ainvoke({"messages": [HumanMessage(question)]}, config or None)
    return str(state["messages"][-1].text)


async def nothing(state: Any) -> dict[str, Any]:
    """A node that changes nothing."""
    return {}


def down(error: Exception | None = None) -> Model:
    """A model whose provider cannot be reached."""
    return Model(script=[error or ConnectionError("provider is down")], model_name="down")


def asking(model: Runnable[Any, Any], instructions: str = "") -> Any:
    """A node that asks a model with the whole conversation."""

    async def ask(state: MessagesState) -> dict[str, Any]:
        prompt = [SystemMessage(instructions)] if instructions else []
        return {"messages": [await model.ainvoke([*prompt, *state["messages"]])]}

    return ask


def loop_of(
    ask: Any, tools: Sequence[BaseTool], **node: Any
) -> StateGraph[MessagesState, None, MessagesState, MessagesState]:
    """A graph, not compiled, in which node `ask` and node `tools` take turns."""
    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask, **node)
    graph.add_node("tools", ToolNode(list(tools)))
    graph.add_edge(START, "ask")
    graph.add_conditional_edges("ask", tools_condition)
    graph.add_edge("tools", "ask")
    return graph


def ends_with(*messages: Any) -> Any:
    """A graph of plain code whose last step writes these messages."""

    async def write(state: MessagesState) -> dict[str, Any]:
        return {"messages": list(messages)}

    graph = StateGraph(MessagesState)
    graph.add_node("write", write)
    graph.add_edge(START, "write")
    return graph.compile()


def answers_with(
    text: Any = "Half of a sent", metadata: Any = None, **more: Any
) -> Callable[[], Any]:
    """An agent whose provider reports this of its answer."""
    message = AIMessage(text, response_metadata=metadata or {}, **more)
    return lambda: create_agent(Model(script=[message]), [])
