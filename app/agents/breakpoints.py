"""Whether a graph stopped at a breakpoint: LangGraph returns its state as if it had ended."""

from typing import Any

from langchain_core.messages import AIMessage
from langgraph.checkpoint.base import BaseCheckpointSaver

from app.agents.answers import as_messages


def has(graph: Any) -> bool:
    """Whether a graph has breakpoints."""
    return bool(graph.interrupt_before_nodes or graph.interrupt_after_nodes)


async def astopped(graph: Any, config: Any, result: Any) -> bool:
    """Whether the graph, called with this, has stopped at one: then it has a next step."""
    if _keeps_steps(graph, config):
        return bool((await graph.aget_state(config)).next)
    return _left_calls(result)


def stopped(graph: Any, config: Any, result: Any) -> bool:
    """The same for a graph that was called from sync code."""
    if _keeps_steps(graph, config):
        return bool(graph.get_state(config).next)
    return _left_calls(result)


def _keeps_steps(graph: Any, config: Any) -> bool:
    named = (config or {}).get("configurable") or {}
    return isinstance(graph.checkpointer, BaseCheckpointSaver) and "thread_id" in named


def _left_calls(result: Any) -> bool:
    """Of a graph that keeps no steps only this is seen: calls that nobody answered."""
    messages = as_messages(result.get("messages")) if isinstance(result, dict) else []
    return any(isinstance(m, AIMessage) and bool(m.tool_calls) for m in messages[-1:])
