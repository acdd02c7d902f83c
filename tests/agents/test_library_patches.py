"""Wrapped methods of the library reach our handler and change nothing for other programs."""

import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool, tool
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel

from app.agents.graph.agent import GraphAgent
from app.agents.handler import library_patches
from app.runs.model import AgentInfo
from tests import fakes

WRAPPED: dict[type, tuple[str, ...]] = {
    BaseChatModel: ("invoke", "ainvoke", "stream", "astream"),
    BaseTool: ("run", "arun"),
    ToolNode: ("_run_one", "_arun_one"),
    Pregel: ("invoke", "ainvoke"),
}


def broken_agent() -> tuple[Any, ToolNode, BaseTool]:
    """An agent whose tool raises, with its ToolNode and that tool."""

    @tool
    async def look(order: str = "1") -> str:
        """Look."""
        raise ConnectionError("text")

    model = fakes.ScriptedModel(script=fakes.calls_then_answers("look"))
    graph = create_agent(model, [look])
    node = graph.nodes["tools"].bound
    assert isinstance(node, ToolNode)
    return graph, node, look


def test_wrapped_methods_exist() -> None:
    """The wrapped methods exist, with the parameters that we use."""
    library_patches.install_patches()
    for owner, methods in WRAPPED.items():
        for method in methods:
            parameters = inspect.signature(getattr(owner, method)).parameters
            wanted = {"BaseTool": "tool_input", "ToolNode": "call"}
            assert wanted.get(owner.__name__, "config") in parameters, method


def test_methods_are_wrapped_once() -> None:
    """However many handlers there are, each method is wrapped once."""
    library_patches.install_patches()
    once = {(o, m): getattr(o, m) for o, methods in WRAPPED.items() for m in methods}
    library_patches.install_patches()
    assert once == {(o, m): getattr(o, m) for o, methods in WRAPPED.items() for m in methods}


async def test_graph_without_a_handler_is_unchanged() -> None:
    """A served graph that a program calls itself does as before: a tool's failure is its own."""
    graph, node, look = broken_agent()
    before = dict(vars(node))
    GraphAgent(graph, AgentInfo(name="a", kind=""))
    assert node.tools_by_name["look"] is look
    assert vars(node) == before
    with pytest.raises(ConnectionError):
        await graph.ainvoke({"messages": [("user", "go")]})


async def test_other_handler_changes_nothing() -> None:
    """Another program's handler makes no difference."""
    graph, _, _ = broken_agent()
    library_patches.install_patches()
    with pytest.raises(ConnectionError):
        await graph.ainvoke({"messages": [("user", "go")]}, {"callbacks": [BaseCallbackHandler()]})


async def test_stream_without_a_handler_is_the_librarys() -> None:
    """A program's own stream is the library's own generator."""
    library_patches.install_patches()
    model = fakes.ScriptedModel(script=lambda _: AIMessage("one two"))
    stream = model.astream("go")
    assert isinstance(stream, AsyncIterator)
    assert stream.ag_code.co_filename == inspect.getsourcefile(BaseChatModel)  # type: ignore[attr-defined]
    assert "".join([chunk.text async for chunk in stream]) == "one two"
    assert "".join(chunk.text for chunk in model.stream("go")) == "one two"
