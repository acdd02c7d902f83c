"""The one fake agent of every measurement, as a graph and as an executor.

A run has four model calls and three tool calls, and none of them does any work. So the bench
measures LangChain and the code around it. With MODEL_MS each model call waits that long.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import tool

from bench.load import TURNS, expected

SYSTEM_PROMPT = "You work at an order desk."
_USAGE: Any = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


@tool
async def look_up(order: str) -> str:
    """Look an order up."""
    return f"order {order} shipped"


class FakeModel(BaseChatModel):
    """Asks for one tool call in each of its first turns, then answers. It has no state."""

    delay_s: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "bench"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, Any]:
        """Take the tools as a real model would."""
        return self.bind(tools=[t.name for t in tools])

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> ChatResult:
        raise NotImplementedError("the bench asks its model asynchronously")

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> ChatResult:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        return ChatResult(generations=[ChatGeneration(message=_reply(messages))])


def _reply(messages: Sequence[BaseMessage]) -> AIMessage:
    results = [m for m in messages if isinstance(m, ToolMessage)]
    reason = {"finish_reason": "tool_calls" if len(results) < TURNS else "stop"}
    if len(results) < TURNS:
        number = str(len(results) + 1)
        call = {"name": "look_up", "args": {"order": number}, "id": f"call-{number}"}
        return AIMessage(
            "",
            tool_calls=[{**call, "type": "tool_call"}],
            usage_metadata=_USAGE,
            response_metadata=reason,
        )
    question = next(m for m in reversed(messages) if isinstance(m, HumanMessage))
    answer = expected(question.text, results[-1].text)
    return AIMessage(answer, usage_metadata=_USAGE, response_metadata=reason)


def _model(delay_ms: float | None) -> FakeModel:
    if delay_ms is None:
        delay_ms = float(os.environ.get("MODEL_MS", "0"))
    return FakeModel(delay_s=delay_ms / 1000)


def graph(delay_ms: float | None = None) -> Any:
    """A `create_agent` graph."""
    # Each server loads only the library of its own agent.
    from langchain.agents import create_agent  # noqa: PLC0415

    return create_agent(_model(delay_ms), [look_up], system_prompt=SYSTEM_PROMPT)


def waiting() -> Any:
    """Return a graph whose model does not answer within an hour."""
    return graph(3_600_000)


def executor(delay_ms: float | None = None) -> Any:
    """A classic `AgentExecutor` over a tool-calling agent."""
    from langchain_classic.agents import (  # noqa: PLC0415
        AgentExecutor,
        create_tool_calling_agent,
    )
    from langchain_core.prompts import ChatPromptTemplate  # noqa: PLC0415

    prompt = ChatPromptTemplate.from_messages(
        [("system", SYSTEM_PROMPT), ("human", "{input}"), ("placeholder", "{agent_scratchpad}")]
    )
    agent = create_tool_calling_agent(_model(delay_ms), [look_up], prompt)
    return AgentExecutor(agent=agent, tools=[look_up])


def nothing() -> Any:
    """Return a graph of one node that answers at once, without a model."""
    from langgraph.graph import END, START, MessagesState, StateGraph  # noqa: PLC0415

    async def answer(_: MessagesState) -> Any:
        return {"messages": [AIMessage("nothing")]}

    drawn: Any = StateGraph(MessagesState)
    drawn.add_node("answer", answer)
    drawn.add_edge(START, "answer")
    drawn.add_edge("answer", END)
    return drawn.compile()
