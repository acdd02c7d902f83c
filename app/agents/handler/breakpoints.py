"""Finds whether a graph stopped at a breakpoint: LangGraph then returns as if it had finished."""

from typing import Any

from langchain_core.messages import AIMessage
from langgraph.checkpoint.base import BaseCheckpointSaver

from app.agents.answers import as_messages


def has(graph: Any) -> bool:
    """Whether a graph has breakpoints."""
    return bool(graph.interrupt_before_nodes or graph.interrupt_after_nodes)


async def astopped(graph: Any, config: Any, result: Any) -> bool:
    """Whether the invoked graph stopped at a breakpoint: it then has a next step."""
    if _has_checkpoints(graph, config):
        return bool((await graph.aget_state(config)).next)
    return _has_unanswered_calls(result)


def stopped(graph: Any, config: Any, result: Any) -> bool:
    """The same as `astopped`, for sync code."""
    if _has_checkpoints(graph, config):
        return bool(graph.get_state(config).next)
    return _has_unanswered_calls(result)


def _has_checkpoints(graph: Any, config: Any) -> bool:
    configurable = (config or {}).get("configurable") or {}
    return isinstance(graph.checkpointer, BaseCheckpointSaver) and "thread_id" in configurable


def _has_unanswered_calls(result: Any) -> bool:
    """Without a checkpointer, only unanswered tool calls show that the graph stopped."""
    messages = as_messages(result.get("messages")) if isinstance(result, dict) else []
    return any(isinstance(m, AIMessage) and bool(m.tool_calls) for m in messages[-1:])
