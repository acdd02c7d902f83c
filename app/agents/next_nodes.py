"""Which nodes a kept step goes on with: another version of its graph may not have them.

LangGraph passes over a node that it does not know, and would take the run for finished.
"""

from collections.abc import Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.pregel import Pregel
from langgraph.types import StateSnapshot

# How LangGraph's graphs name the channels that lead to a node, and the one of what was sent.
_LEADS = ("branch:", "join:")
_SENT = "__pregel_tasks"
# What is kept of an edge with several beginnings while none of them is done.
_NOT_BEGUN: tuple[Any, ...] = (set(), (set(), False))


async def missing(graph: Pregel[Any, Any, Any, Any], config: RunnableConfig) -> tuple[str, ...]:
    """The nodes that the newest kept step goes on with and the graph, or one in it, has not."""
    saver: Any = graph.checkpointer
    kept = await graph.aget_state(config, subgraphs=True)
    return tuple(sorted(await _missing(graph, saver, kept)))


async def _missing(graph: Any, saver: BaseCheckpointSaver[Any], kept: StateSnapshot) -> set[str]:
    saved = await saver.aget_tuple(kept.config)
    found = _unknown(graph, saved.checkpoint["channel_values"] if saved else {})
    inner = dict(graph.get_subgraphs())
    for task in kept.tasks:
        if isinstance(task.state, StateSnapshot):
            found |= await _missing(inner[task.name], saver, task.state)
    return found


def _unknown(graph: Any, kept: Mapping[str, Any]) -> set[str]:
    sent = {send.node for send in kept.get(_SENT) or ()}
    leads = {
        channel.rpartition(":")[2]
        for channel, value in kept.items()
        if channel.startswith(_LEADS) and channel not in graph.channels and value not in _NOT_BEGUN
    }
    return leads | (sent - set(graph.nodes))
