"""Graphs that need more than a question, and similar ones that do not."""

import operator
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired, TypedDict

from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import (
    dynamic_prompt,
    wrap_model_call,
)
from langchain.chat_models import init_chat_model
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.func import entrypoint
from langgraph.graph import MessagesState, add_messages
from langgraph.runtime import Runtime, get_runtime
from pydantic import BaseModel

from tests import fakes
from tests.agents.sync_parts import agent, answer_of, fine, graph


@wrap_model_call
async def chosen(request: Any, handler: Any) -> Any:
    model = fakes.ScriptedModel(script=lambda _: AIMessage("fine"))
    return await handler(request.override(model=model))


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
    return answer_of(f"Hello {runtime.context.user}")


async def greets_or_not(state: Any, runtime: Runtime[Settings]) -> dict[str, Any]:
    return answer_of((runtime.context or {}).get("model", "fine"))


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
    return answer_of(f"Tenant {config['configurable']['tenant']}")


def of_tenant_by_name(state: Any, config: RunnableConfig) -> dict[str, Any]:
    settings = config["configurable"]
    tenant = settings["tenant"]
    return answer_of(f"Tenant {tenant}")


async def of_tenant_or_none(state: Any, config: RunnableConfig) -> dict[str, Any]:
    return answer_of(config["configurable"].get("tenant", "fine"))


def of_tenant_if_any(state: Any, config: RunnableConfig) -> dict[str, Any]:
    if "tenant" not in config["configurable"]:
        return answer_of("fine")
    return answer_of(config["configurable"]["tenant"])


def of_tenant_tried(state: Any, config: RunnableConfig) -> dict[str, Any]:
    try:
        return answer_of(config["configurable"]["tenant"])
    except KeyError:
        return answer_of("fine")


def of_thread(state: Any, config: RunnableConfig) -> dict[str, Any]:
    assert config["configurable"]["thread_id"]
    return answer_of("fine")


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
    return answer_of(f"About {state['topic']}")


async def on_topic_if_any(state: Any) -> dict[str, Any]:
    return answer_of(state.get("topic", "fine"))


@entrypoint()
def function(question: Any) -> str:
    """A graph that is one function."""
    return "an answer"


any_model: Any = init_chat_model()  # whose name is asked for in each run

# Each with words of the sentence that refuses it. All of them fail when they are run.
REFUSED: dict[str, tuple[Any, str]] = {
    "context": (graph(greets, context_schema=Caller), "a context with 'user'"),
    "prompt": (agent(middleware=[prompt_for], context_schema=Caller), "a context with 'user'"),
    "configurable": (graph(of_tenant), "'tenant' from config['configurable']"),
    "model": (create_agent(any_model, []), "'model' from config['configurable']"),
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
    "model chosen by a hook": create_agent(any_model, [], middleware=[chosen]),
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
