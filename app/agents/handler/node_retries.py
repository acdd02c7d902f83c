"""Finds whether LangGraph retries a node that raised. If so, its tools' failures are not final."""

from collections.abc import Mapping, Sequence
from typing import Any

from langgraph.pregel import Pregel
from langgraph.types import RetryPolicy

Policies = Mapping[str, Sequence[RetryPolicy]]


def graphs_in(graph: Pregel[Any, Any, Any, Any]) -> list[Pregel[Any, Any, Any, Any]]:
    """Return the graph and its subgraphs."""
    inner = (sub for _, sub in graph.get_subgraphs(recurse=True))
    return [graph, *(sub for sub in inner if isinstance(sub, Pregel))]


def policies_of(graph: Pregel[Any, Any, Any, Any]) -> dict[str, Sequence[RetryPolicy]]:
    """Return the retry policies of the nodes of a graph and its subgraphs, by node name."""
    found: dict[str, Sequence[RetryPolicy]] = {}
    for part in reversed(graphs_in(graph)):
        own = part.retry_policy
        shared = [own] if isinstance(own, RetryPolicy) else list(own or ())
        for name, node in part.nodes.items():
            policy = node.retry_policy
            of_node = [policy] if isinstance(policy, RetryPolicy) else list(policy or ())
            if of_node or shared:
                found[name] = of_node or shared
    return found


def is_retried(policies: Sequence[RetryPolicy], raised: Exception, execution: int) -> bool:
    """Whether the node is executed again after its execution number `execution` raised."""
    for policy in policies:
        if _covers(policy, raised):
            return execution < policy.max_attempts
    return False


def _covers(policy: RetryPolicy, raised: Exception) -> bool:
    on: Any = policy.retry_on
    if isinstance(on, list | tuple):
        return isinstance(raised, tuple(on))
    if isinstance(on, type):
        return isinstance(raised, on)
    return bool(on(raised))
