"""Graphs that need more than a question, and their likes that do without."""

import operator
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired, TypedDict

from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    dynamic_prompt,
    wrap_model_call,
    wrap_tool_call,
)
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.func import entrypoint
from langgraph.graph import END, START, MessagesState, StateGraph, add_messages
from langgraph.runtime import Runtime, get_runtime
from pydantic import BaseModel

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


def said(text: str) -> dict[str, Any]:
    """What a node writes that answers."""
    return {"messages": [AIMessage(text)]}


def fine(state: Any) -> dict[str, Any]:
    """A node that needs nothing."""
    return said("fine")


@tool("look")
def look() -> str:
    """Look."""
    return "looked"


# What has no async form.


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


def sync_saver() -> SqliteSaver:
    """LangGraph's saver in a file, in its sync form."""
    return SqliteSaver(sqlite3.connect(":memory:", check_same_thread=False))


with_hook = agent(look, middleware=[logged])


def asks_in_sync(state: Any) -> dict[str, Any]:
    """A sync node that calls an agent, whose hook has a sync form."""
    return {"messages": with_hook.invoke({"messages": state["messages"]})["messages"]}


# What needs a context.


@dataclass
class Caller:
    """A context without defaults."""

    user: str


@dataclass
class Anybody:
    """A context with them."""

    user: str = "anybody"


class Place(BaseModel):
    """A context of pydantic's."""

    city: str


class Settings(TypedDict):
    """A context that is a dictionary."""

    model: str


class Loose(TypedDict):
    """One whose key may be None, or missing."""

    model: str | None
    user: NotRequired[str]


async def greets(state: Any, runtime: Runtime[Caller]) -> dict[str, Any]:
    return said(f"Hello {runtime.context.user}")


async def greets_or_not(state: Any, runtime: Runtime[Settings]) -> dict[str, Any]:
    return said((runtime.context or {}).get("model", "fine"))


@dynamic_prompt
def prompt_for(request: Any) -> str:
    return f"You serve {request.runtime.context.user}."


@dynamic_prompt
def prompt_for_some(request: Any) -> str:
    context = get_runtime(Caller).context
    return "You serve." if request.runtime.context is None else f"You serve {context.user}."


@tool("look")
def look_for(runtime: ToolRuntime[Caller]) -> str:
    """Look."""
    return runtime.context.user


@tool("look")
def look_for_some(runtime: ToolRuntime[Caller]) -> str:
    """Look."""
    return runtime.context.user if runtime.context else "looked"


# What needs keys of `configurable`.


async def of_tenant(state: Any, config: RunnableConfig) -> dict[str, Any]:
    return said(f"Tenant {config['configurable']['tenant']}")


def of_tenant_by_name(state: Any, config: RunnableConfig) -> dict[str, Any]:
    settings = config["configurable"]
    tenant = settings["tenant"]
    return said(f"Tenant {tenant}")


async def of_tenant_or_none(state: Any, config: RunnableConfig) -> dict[str, Any]:
    return said(config["configurable"].get("tenant", "fine"))


def of_tenant_if_any(state: Any, config: RunnableConfig) -> dict[str, Any]:
    if "tenant" not in config["configurable"]:
        return said("fine")
    return said(config["configurable"]["tenant"])


def of_tenant_tried(state: Any, config: RunnableConfig) -> dict[str, Any]:
    try:
        return said(config["configurable"]["tenant"])
    except KeyError:
        return said("fine")


def of_thread(state: Any, config: RunnableConfig) -> dict[str, Any]:
    assert config["configurable"]["thread_id"]
    return said("fine")


# What needs other keys of its input.


class Topic(MessagesState):
    """A state that has more than messages."""

    topic: str


class OnlyTopic(TypedDict):
    """An input without messages."""

    topic: str


class WithTopic(TypedDict):
    """An input that wants both."""

    messages: list[Any]
    topic: str


class PerhapsTopic(TypedDict):
    """An input with one more key that may be missing."""

    messages: list[Any]
    topic: NotRequired[str]


class Strict(BaseModel):
    """A state of pydantic's."""

    messages: Annotated[list[Any], add_messages]
    topic: str


class StrictNotes(BaseModel):
    """One whose other key begins as an empty list."""

    messages: Annotated[list[Any], add_messages]
    notes: Annotated[list[str], operator.add]


@dataclass
class Plain:
    """A state that is a dataclass."""

    messages: Annotated[list[Any], add_messages]
    topic: str


@dataclass
class PlainDefault:
    """One with a default."""

    messages: Annotated[list[Any], add_messages]
    topic: str = "any"


class AgentOf(AgentState[Any]):
    """A state of an agent, with a key that a middleware would set."""

    customer: str


async def on_topic(state: Any) -> dict[str, Any]:
    return said(f"About {state['topic']}")


async def on_topic_if_any(state: Any) -> dict[str, Any]:
    return said(state.get("topic", "fine"))


@entrypoint()
def function(question: Any) -> str:
    """A graph that is one function."""
    return "an answer"


# Each with words of the sentence that refuses it. All of them fail when they are run.
REFUSED: dict[str, tuple[Any, str]] = {
    "saver": (agent(checkpointer=sync_saver()), "SqliteSaver, which has no async methods"),
    "own saver": (agent(checkpointer=OwnSaver()), "OwnSaver, which has no async methods"),
    "saver of a graph": (faults.graph_of(fine, checkpointer=sync_saver()), "AsyncSqliteSaver"),
    "tool hook": (with_hook, "'logged' whose wrap_tool_call has no async form"),
    "model hook": (agent(middleware=[timed]), "'timed' whose wrap_model_call has no async form"),
    "class hook": (agent(look, middleware=[Whole(), Half()]), "awrap_tool_call beside it"),
    "hook of a node": (graph(with_hook), "'logged' whose wrap_tool_call"),
    "context": (graph(greets, context_schema=Caller), "a context with 'user'"),
    "prompt": (agent(middleware=[prompt_for], context_schema=Caller), "a context with 'user'"),
    "configurable": (graph(of_tenant), "'tenant' from config['configurable']"),
    "configurable by name": (graph(of_tenant_by_name), "'tenant' from config['configurable']"),
    "input": (graph(on_topic, Topic, input_schema=WithTopic), "'topic' in its input"),
    "pydantic": (graph(fine, Strict), "'topic' in its input"),
    "dataclass": (graph(fine, Plain), "'topic' in its input"),
    "entrypoint": (function, "is an @entrypoint"),
}
# What its author asks of callers, and what would never read the question: these may run.
ASKED: dict[str, tuple[Any, str]] = {
    "pydantic context": (graph(fine, context_schema=Place), "a context with 'city'"),
    "typed context": (graph(fine, context_schema=Settings), "a context with 'model'"),
    "context of a tool": (agent(look_for, context_schema=Caller), "a context with 'user'"),
    "no messages": (graph(fine, Topic, input_schema=OnlyTopic), "without 'messages'"),
}
SERVED: dict[str, Any] = {
    "saver": agent(checkpointer=InMemorySaver()),
    "hooks": agent(look, middleware=[Whole(), timed_async]),
    "hook without tools": agent(middleware=[Half()]),
    "hook in a sync node": graph(asks_in_sync),
    "context with defaults": graph(fine, context_schema=Anybody),
    "context that may be missing": graph(fine, context_schema=Loose),
    "context looked for": graph(greets_or_not, context_schema=Settings),
    "prompt looks for it": agent(middleware=[prompt_for_some], context_schema=Caller),
    "tool looks for it": agent(look_for_some, context_schema=Caller),
    "configurable with default": graph(of_tenant_or_none),
    "configurable if any": graph(of_tenant_if_any),
    "configurable tried": graph(of_tenant_tried),
    "configurable bound": graph(of_tenant).with_config(configurable={"tenant": "7"}),
    "thread": graph(of_thread),
    "state": graph(on_topic_if_any, Topic),
    "input that may be missing": graph(on_topic_if_any, Topic, input_schema=PerhapsTopic),
    "input with a default": graph(on_topic_if_any, Topic, input_schema=WithTopic),
    "pydantic notes": graph(fine, StrictNotes),
    "dataclass default": graph(fine, PlainDefault),
    "agent's state": agent(state_schema=AgentOf),
}
