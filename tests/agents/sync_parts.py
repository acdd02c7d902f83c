"""Agents with savers and hooks that work with `invoke` only, and their likes that do not."""

import asyncio
import sqlite3
from collections.abc import Iterator
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, wrap_model_call, wrap_tool_call
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from psycopg_pool import AsyncConnectionPool

from tests import fakes, faults


def graph(node: Any, state: Any = MessagesState, **options: Any) -> Any:
    """A graph of one node."""
    made = StateGraph(state, **options)
    made.add_node("only", node)
    made.add_edge(START, "only")
    made.add_edge("only", END)
    return made.compile()


def agent(*tools: Any, **options: Any) -> Any:
    """An agent of create_agent that asks for its tool once, or answers."""
    model = faults.model() if tools else fakes.ScriptedModel(script=lambda _: AIMessage("fine"))
    return create_agent(model, list(tools), **options)


def answer_of(text: str) -> dict[str, Any]:
    """What a node writes that answers."""
    return {"messages": [AIMessage(text)]}


def fine(state: Any) -> dict[str, Any]:
    """A node that needs nothing."""
    return answer_of("fine")


@tool("look")
def look() -> str:
    """Look."""
    return "looked"


@wrap_tool_call
def logged(request: Any, handler: Any) -> Any:
    return handler(request)


@wrap_model_call
def timed(request: Any, handler: Any) -> Any:
    return handler(request)


@wrap_model_call
async def timed_async(request: Any, handler: Any) -> Any:
    return await handler(request)


class Half(AgentMiddleware[Any, Any, Any]):
    """A hook in a class, in one form."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        return handler(request)


class Whole(Half):
    """A hook in both forms, and one that LangChain runs on a thread."""

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        return await handler(request)

    def before_model(self, state: Any, runtime: Any) -> None:
        return None


class OwnSaver(BaseCheckpointSaver[Any]):
    """A saver of somebody's own, with sync methods only."""

    def get_tuple(self, config: RunnableConfig) -> None:
        return None

    def list(self, *_: Any, **__: Any) -> Iterator[Any]:
        return iter(())


def graph_of_inner() -> Any:
    """A graph that is meant to stand in another one."""
    return faults.graph_of(fine, checkpointer=True)


def sync_saver() -> SqliteSaver:
    """LangGraph's saver in a file, in its sync form."""
    return SqliteSaver(sqlite3.connect(":memory:", check_same_thread=False))


with_hook = agent(look, middleware=[logged])


def asks_in_sync(state: Any) -> dict[str, Any]:
    """A sync node that calls an agent, whose hook has a sync form."""
    return {"messages": with_hook.invoke({"messages": state["messages"]})["messages"]}


def closed_saver() -> AsyncSqliteSaver:
    """A saver whose connection was closed, as by an `async with` that is left."""

    async def opened() -> AsyncSqliteSaver:
        async with AsyncSqliteSaver.from_conn_string(":memory:") as saver:
            return saver

    return asyncio.run(opened())


def closed_pool() -> AsyncPostgresSaver:
    """The same with a pool, whose server is away all the time."""

    async def opened() -> AsyncPostgresSaver:
        pool: Any = AsyncConnectionPool("postgresql://127.0.0.1:9/x", open=False, min_size=1)
        await pool.open()
        await pool.close()
        return AsyncPostgresSaver(pool)

    return asyncio.run(opened())


# Each with words of the sentence that refuses it. All of them fail when they are run.
REFUSED: dict[str, tuple[Any, str]] = {
    "saver": (agent(checkpointer=sync_saver()), "SqliteSaver, which has no async methods"),
    "own saver": (agent(checkpointer=OwnSaver()), "OwnSaver, which has no async methods"),
    "saver of a graph": (faults.graph_of(fine, checkpointer=sync_saver()), "AsyncSqliteSaver"),
    "closed saver": (agent(checkpointer=closed_saver()), "whose connection is closed"),
    "closed pool": (agent(checkpointer=closed_pool()), "whose connection is closed"),
    "inner saver": (graph_of_inner(), "checkpointer=True"),
    "tool hook": (with_hook, "'logged' whose wrap_tool_call has no async form"),
    "model hook": (agent(middleware=[timed]), "'timed' whose wrap_model_call has no async form"),
    "class hook": (agent(look, middleware=[Whole(), Half()]), "awrap_tool_call beside it"),
    "hook of a node": (graph(with_hook), "'logged' whose wrap_tool_call"),
}
SERVED: dict[str, Any] = {
    "saver": agent(checkpointer=InMemorySaver()),
    "hooks": agent(look, middleware=[Whole(), timed_async]),
    "hook without tools": agent(middleware=[Half()]),
    "hook in a sync node": graph(asks_in_sync),
}
