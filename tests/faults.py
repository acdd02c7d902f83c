"""More of the far side: models with no async side, and agents that fail in known ways.

Each secret is a word that must never leave the service in a problem.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_classic.agents import AgentExecutor
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt

from tests import fakes

SECRET = "secret-in-exception"
QUESTION = "secret-in-question"
ARGUMENT = "secret-in-argument"


class SyncModel(BaseChatModel):
    """A chat model that only blocks: awaiting it takes a thread."""

    script: fakes.Script
    delay_s: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "scripted-sync"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, Any]:
        return self.bind(tools=[t.name if isinstance(t, BaseTool) else str(t) for t in tools])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        time.sleep(self.delay_s)
        return ChatResult(generations=[ChatGeneration(message=self.script(messages))])


def model(**fields: Any) -> fakes.ScriptedModel:
    """A model that looks one order up and answers."""
    return fakes.ScriptedModel(**{"script": fakes.calls_then_answers("look"), **fields})


def raising_tool(error: BaseException) -> BaseTool:
    """A tool named `look` that raises the given thing."""

    @tool
    async def look(order: str = "1") -> str:
        """Raise."""
        raise error

    return look


def graph_of(node: Any, **options: Any) -> Any:
    """A graph with a single node."""
    graph = StateGraph(fakes.GraphState)
    graph.add_node("only", node)
    graph.add_edge(START, "only")
    graph.add_edge("only", END)
    return graph.compile(**options)


def graph_that_raises(error: BaseException) -> Any:
    """A graph whose only node raises."""

    async def node(state: fakes.GraphState) -> dict[str, Any]:
        raise error

    return graph_of(node)


def graph_with_sync_node(seconds: float) -> Any:
    """A graph whose only node blocks its thread."""

    def node(state: fakes.GraphState) -> dict[str, Any]:
        time.sleep(seconds)
        return {"messages": [AIMessage("woke")]}

    return graph_of(node)


def graph_with_cancelled_node() -> Any:
    """A graph whose only node awaits something that was cancelled by somebody else."""

    async def node(state: fakes.GraphState) -> dict[str, Any]:
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task
        return {"messages": []}

    return graph_of(node)


def graph_that_asks(*, keeps_state: bool) -> Any:
    """A graph whose only node asks for a human."""

    async def node(state: fakes.GraphState) -> dict[str, Any]:
        return {"messages": [AIMessage(str(interrupt(SECRET)))]}

    return graph_of(node, checkpointer=InMemorySaver() if keeps_state else None)


def agent_whose_tool_asks() -> Any:
    """A create_agent agent whose tool asks for a human."""

    @tool
    async def look() -> str:
        """Ask a human."""
        return str(interrupt(SECRET))

    return create_agent(model(), [look], checkpointer=InMemorySaver())


def agent_whose_middleware_raises(error: Exception) -> Any:
    """A create_agent agent that fails before it asks its model."""

    class Broken(AgentMiddleware[Any, Any, Any]):
        async def abefore_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
            raise error

    return create_agent(model(), [], middleware=[Broken()])


def executor_whose_parser_raises(error: Exception) -> Any:
    """An AgentExecutor that fails on its model's reply, though the reply is valid."""

    def parse(message: BaseMessage) -> Any:
        raise error

    prompt = ChatPromptTemplate.from_messages(
        [("human", "{input}"), MessagesPlaceholder("agent_scratchpad", optional=True)]
    )
    return AgentExecutor(agent=prompt | model() | RunnableLambda(parse), tools=[])
