"""Finds at start why a graph cannot be served, so that no run fails for that reason.

Only certain failures are rejected. An agent that might answer is served.
"""

from typing import Any

from langgraph.pregel import Pregel

from app.agents.inspection import graph_requirements, sync_only

# A graph from @entrypoint has this channel, for its previous return value.
_ENTRYPOINT = "__previous__"
_ASYNC_SAVERS = {"SqliteSaver": "AsyncSqliteSaver", "PostgresSaver": "AsyncPostgresSaver"}


def unservable(graph: Pregel[Any, Any, Any, Any]) -> str | None:
    """Return what prevents serving and how to fix it, as the rest of a sentence; else None."""
    if _ENTRYPOINT in graph.channels:
        return (
            "is an @entrypoint, which has no state with 'messages'; call it in the one node of a "
            "StateGraph(MessagesState), and serve that graph"
        )
    if graph_requirements.MESSAGES not in graph.channels:
        return (
            "is a graph without 'messages' in its state; Watchkeeper sends the question as a "
            "message and reads the answer from the last one"
        )
    return _checkpointer_problem(graph) or _hook_problem(graph) or _requirement_problem(graph)


def _checkpointer_problem(graph: Pregel[Any, Any, Any, Any]) -> str | None:
    if graph.checkpointer is True:
        return (
            "is compiled with checkpointer=True, which only a graph inside another one may be; "
            "compile it with a saver, or with none"
        )
    if sync_only.is_closed(graph):
        return (
            "has a checkpointer whose connection is closed; yield the agent inside the "
            "`async with` that opens the connection, and do not return it"
        )
    saver = sync_only.saver(graph)
    if saver is not None:
        instead = _ASYNC_SAVERS.get(saver, "one that has them")
        return (
            f"has the checkpointer {saver}, which has no async methods, and Watchkeeper runs "
            f"graphs with ainvoke: compile it with {instead}, or with none"
        )
    return None


def _hook_problem(graph: Pregel[Any, Any, Any, Any]) -> str | None:
    for middleware, hook in sync_only.hooks(graph):
        return (
            f"has a middleware {middleware!r} whose {hook} has no async form, and Watchkeeper runs "
            f"graphs with ainvoke: write `async def` under @{hook}, or a{hook} beside it in a class"
        )
    return None


def _requirement_problem(graph: Pregel[Any, Any, Any, Any]) -> str | None:
    if not graph_requirements.takes_messages(graph):
        return (
            "has an input schema without 'messages', so it would never read the question; add "
            "messages to its input_schema"
        )
    if keys := graph_requirements.inputs(graph):
        return (
            f"wants {_quoted(keys)} in its input, and callers send nothing but a question; give "
            "them defaults (NotRequired in a TypedDict), or set them in its first node"
        )
    if keys := graph_requirements.context(graph):
        return (
            f"wants a context with {_quoted(keys)}, which callers cannot send; give these fields "
            "defaults in its context_schema"
        )
    if keys := graph_requirements.configurable(graph):
        return (
            f"reads {_quoted(keys)} from config['configurable'], which callers cannot send; read "
            "it with .get() and a default, or bind it with .with_config(configurable=...)"
        )
    return None


def _quoted(keys: list[str]) -> str:
    return ", ".join(map(repr, keys))
