"""Finds the next nodes of a checkpoint that this version of the graph does not have.

LangGraph skips an unknown node, and would treat the run as finished.
"""

from collections.abc import Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.pregel import Pregel
from langgraph.types import StateSnapshot

# Prefixes of LangGraph's channels that trigger a node, and the channel of `Send`.
_TRIGGERS = ("branch:", "join:")
_SENDS = "__pregel_tasks"
# Values of a join channel while none of its source nodes has finished.
_NOT_STARTED: tuple[Any, ...] = (set(), (set(), False))


async def missing(graph: Pregel[Any, Any, Any, Any], config: RunnableConfig) -> tuple[str, ...]:
    """Return the next nodes of the newest checkpoint that the graph or its subgraphs lack."""
    saver: Any = graph.checkpointer
    snapshot = await graph.aget_state(config, subgraphs=True)
    return tuple(sorted(await _missing(graph, saver, snapshot)))


async def _missing(
    graph: Any, saver: BaseCheckpointSaver[Any], snapshot: StateSnapshot
) -> set[str]:
    saved = await saver.aget_tuple(snapshot.config)
    found = _unknown(graph, saved.checkpoint["channel_values"] if saved else {})
    inner = dict(graph.get_subgraphs())
    for task in snapshot.tasks:
        if isinstance(task.state, StateSnapshot):
            found |= await _missing(inner[task.name], saver, task.state)
    return found


def _unknown(graph: Any, snapshot: Mapping[str, Any]) -> set[str]:
    sent = {send.node for send in snapshot.get(_SENDS) or ()}
    triggered = {
        channel.rpartition(":")[2]
        for channel, value in snapshot.items()
        if channel.startswith(_TRIGGERS)
        and channel not in graph.channels
        and value not in _NOT_STARTED
    }
    return triggered | (sent - set(graph.nodes))
