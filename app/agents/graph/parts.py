"""Static properties of a graph: how it answers, where it stops, what bounds it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain.agents.middleware import ModelCallLimitMiddleware, ToolCallLimitMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel

from app.agents.builder import ATTEMPTS
from app.agents.handler.node_retries import Policies, graphs_in, policies_of
from app.agents.inspection import introspection

Graph = Pregel[Any, Any, Any, Any]

# Iterations, model calls and the deadline bound a run instead; each has its own outcome.
_RECURSION_LIMIT = 100_000
# create_agent sets this on each graph: it is not the user's choice.
_RECURSION_LIMIT_OF_CREATE_AGENT = 9_999


@dataclass(frozen=True, slots=True)
class GraphParts:
    """The static properties of a graph.

    `answer_keys` are its output keys besides messages. `breaks` means that it has breakpoints.
    `direct_tools` are the tools whose results are answers, and `output_tools` those for structured
    output, which `wants_output` requires. `limit_nodes` are the nodes of LangChain's own limits.
    """

    model: BaseChatModel | None
    attempts: int
    verbose: bool
    breaks: bool
    wants_output: bool
    answer_keys: Sequence[str]
    output_tools: frozenset[str]
    direct_tools: frozenset[str]
    limit_nodes: frozenset[str]
    policies: Policies
    recursion_limit: int


def parts_of(graph: Graph) -> GraphParts:
    """Inspect a graph, once, before it is served."""
    tools = _tools_of(graph)
    config: Mapping[str, Any] = graph.config or {}
    return GraphParts(
        model=introspection.find(graph, BaseChatModel),  # type: ignore[type-abstract]
        attempts=(config.get("metadata") or {}).get(ATTEMPTS, 1),
        verbose=graph.debug or any(tool.verbose for tool in tools),
        breaks=bool(graph.interrupt_before_nodes or graph.interrupt_after_nodes),
        wants_output=introspection.wants_output(graph),
        answer_keys=[key for key in _output_keys(graph) if key != "messages"],
        output_tools=introspection.output_tools(graph),
        direct_tools=frozenset(tool.name for tool in tools if tool.return_direct),
        limit_nodes=_limit_nodes(graph),
        policies=policies_of(graph),
        recursion_limit=_recursion_limit(config),
    )


def _recursion_limit(config: Mapping[str, Any]) -> int:
    """Return the user's own limit if it is set, else ours."""
    found = config.get("recursion_limit", _RECURSION_LIMIT_OF_CREATE_AGENT)
    return _RECURSION_LIMIT if found == _RECURSION_LIMIT_OF_CREATE_AGENT else int(found)


def _output_keys(graph: Graph) -> list[str]:
    keys = graph.output_channels
    return [keys] if isinstance(keys, str) else list(keys)


def _tools_of(graph: Graph) -> list[BaseTool]:
    nodes = introspection.find_all(graph, ToolNode)
    return [tool for node in nodes for tool in node.tools_by_name.values()]


def _limit_nodes(graph: Graph) -> frozenset[str]:
    limits = (ModelCallLimitMiddleware, ToolCallLimitMiddleware)
    return frozenset(
        name
        for part in graphs_in(graph)
        for name, node in part.nodes.items()
        if any(isinstance(piece, limits) for piece in introspection.parts(node))
    )
