"""Agents that write ten megabytes and keep none of it, for a process of their own."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langgraph.graph import END, START, MessagesState, StateGraph

from app.runs import ring

_CALLS, _CHUNKS, _CHUNK_BYTES = 40, 5, 50_000
SAYS_BYTES = _CALLS * _CHUNKS * _CHUNK_BYTES


class _Chatterbox(BaseChatModel):
    """Says more than a slow reader can take."""

    @property
    def _llm_type(self) -> str:
        return "chatterbox"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        raise NotImplementedError("It is only asked to stream.")

    async def _astream(
        self, messages: list[BaseMessage], *_: Any, **__: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for number in range(_CHUNKS):
            await asyncio.sleep(0.01)
            chunk = AIMessageChunk(content="x" * _CHUNK_BYTES)
            if number == _CHUNKS - 1:
                chunk.response_metadata = {"finish_reason": "stop"}
            yield ChatGenerationChunk(message=chunk)


async def _ask_often(state: MessagesState) -> dict[str, Any]:
    """This keeps no text, so that only the service can hold it."""
    for _ in range(_CALLS):
        await _Chatterbox().ainvoke("q")
    return {"messages": [AIMessage("poured")]}


def pours() -> Any:
    """The agent, as `serve` takes it."""
    graph = StateGraph(MessagesState)
    graph.add_node("ask_often", _ask_often)
    graph.add_edge(START, "ask_often")
    graph.add_edge("ask_often", END)
    return graph.compile()


def pours_without_bounds() -> Any:
    """The same over rings that keep everything: what the measurement must see."""
    ring._MAX_BYTES = ring._MAX_ENTRIES = 1_000_000_000
    return pours()
