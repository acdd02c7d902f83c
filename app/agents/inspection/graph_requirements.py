"""Finds what a graph requires beside a question: callers can only send a question."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NotRequired, Required, Union, get_args, get_origin

from langchain.agents.middleware import AgentMiddleware
from langgraph.channels.base import BaseChannel
from langgraph.graph import START
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel
from pydantic import BaseModel
from typing_extensions import is_typeddict

from app.agents.inspection import introspection, source_inspection, sync_only

MESSAGES = "messages"
# Keys that every graph receives with its thread and checkpoint.
_ALWAYS_SET = ("thread_id", "checkpoint_id", "checkpoint_ns", "checkpoint_map")


def default_context(graph: Pregel[Any, Any, Any, Any]) -> Any:
    """Return a context with all fields at their defaults.

    Returns None without a context schema, for a TypedDict, and if a field has no default.
    """
    schema = graph.context_schema
    if schema is None or is_typeddict(schema) or _required(schema, nullable=True):
        return None
    return schema()


def context(graph: Pregel[Any, Any, Any, Any]) -> list[str]:
    """Return the required fields of its context."""
    wanted = _required(graph.context_schema)
    checks = (source_inspection.mentions_configurable, source_inspection.tests_for_context)
    if wanted and any(check(function) for function in _functions(graph) for check in checks):
        return []
    return wanted


def takes_messages(graph: Pregel[Any, Any, Any, Any]) -> bool:
    """Whether its input schema has messages, so that it reads the question."""
    builder = getattr(graph, "builder", None)
    return builder is None or MESSAGES in builder.schemas[builder.input_schema]


def inputs(graph: Pregel[Any, Any, Any, Any]) -> list[str]:
    """Return input keys that the schema requires, or that the first step cannot miss."""
    builder = getattr(graph, "builder", None)
    if builder is None:
        return []
    needed: list[str] = []
    for node in _first_nodes(builder):
        schema = builder.nodes[node].input_schema
        if not is_typeddict(schema):  # nothing validates a TypedDict, so keys may be missing
            needed += _required(schema, nullable=True)
    if builder.input_schema is not builder.state_schema and not _is_generated(builder.input_schema):
        defaulted = set[str]().union(*map(source_inspection.keys_with_default, _functions(graph)))
        needed += [key for key in _required(builder.input_schema) if key not in defaulted]
    return [k for k in dict.fromkeys(needed) if k != MESSAGES and not _has_value(graph, k)]


def configurable(graph: Pregel[Any, Any, Any, Any]) -> list[str]:
    """Return keys that its first step always reads from `config["configurable"]`."""
    builder = getattr(graph, "builder", None)
    if builder is None:
        return []
    available = {*((graph.config or {}).get("configurable") or {}), *_ALWAYS_SET}
    functions = [
        f for node in _first_nodes(builder) for f in _function_of(builder.nodes[node].runnable)
    ]
    wanted = [key for function in functions for key in source_inspection.keys(function)]
    return [key for key in (*wanted, *_model_keys(graph)) if key not in available]


def _model_keys(graph: Pregel[Any, Any, Any, Any]) -> Iterator[str]:
    """Yield the key of a configurable model of `create_agent` that has no default."""
    parts = list(sync_only.async_parts(graph))
    if (graph.config or {}).get("metadata", {}).get("ls_integration") != "langchain_create_agent":
        return
    owners = [type(getattr(part, "__self__", None)) for part in parts if inspect.ismethod(part)]
    if any(issubclass(owner, AgentMiddleware) for owner in owners):
        return  # a middleware may select another model
    for part in parts:
        if type(part).__name__ == "_ConfigurableModel" and not part._default_config.get("model"):
            yield f"{part._config_prefix}model"


def _required(schema: Any, *, nullable: bool = False) -> list[str]:
    """Return fields without a default. Fields that may be None count only with `nullable`."""
    hints = _hints(schema)
    if is_typeddict(schema):
        # With string annotations, `__required_keys__` includes optional keys too.
        names = [n for n in schema.__required_keys__ if get_origin(hints.get(n)) is not NotRequired]
    elif isinstance(schema, type) and issubclass(schema, BaseModel):
        names = [name for name, field in schema.model_fields.items() if field.is_required()]
    elif dataclasses.is_dataclass(schema):
        names = [field.name for field in dataclasses.fields(schema) if _has_no_default(field)]
    else:
        return []
    return [name for name in hints if name in names and (nullable or not _may_be_none(hints[name]))]


def _has_no_default(field: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return field.init and field.default is missing and field.default_factory is missing


def _hints(schema: Any) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(schema, include_extras=True)
    except (NameError, TypeError):  # names that exist only for type checkers
        return dict(getattr(schema, "__annotations__", {}))


def _may_be_none(hint: Any) -> bool:
    while get_origin(hint) in (Annotated, Required):
        hint = get_args(hint)[0]
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def _has_value(graph: Pregel[Any, Any, Any, Any], key: str) -> bool:
    """Whether a state key has an initial value, such as an empty list."""
    channel = graph.channels.get(key)
    return not isinstance(channel, BaseChannel) or channel.is_available()


def _is_generated(schema: Any) -> bool:
    """Whether LangChain generated the schema, from an agent and its middlewares."""
    return str(schema.__module__).startswith("langchain.")


def _first_nodes(builder: Any) -> Iterator[str]:
    """Yield the first nodes of each run."""
    return (end for start, end in sorted(builder.edges) if start == START and end in builder.nodes)


def _functions(graph: Pregel[Any, Any, Any, Any]) -> Iterator[Any]:
    """Yield the user's functions in its nodes, hooks and tools."""
    builder = getattr(graph, "builder", None)
    nodes = (node.runnable for node in builder.nodes.values()) if builder else ()
    parts = [function for node in nodes for function in _function_of(node)]
    parts += sync_only.async_parts(graph)
    for node in introspection.find_all(graph, ToolNode):
        for tool in node.tools_by_name.values():
            parts += [getattr(tool, "func", None), getattr(tool, "coroutine", None)]
    for part in parts:
        if inspect.isfunction(part) and not part.__module__.startswith(sync_only.LIBRARIES):
            yield part


def _function_of(runnable: Any) -> Iterator[Any]:
    """Yield the function of a node, if it is one."""
    # Prefer the sync function: LangGraph generates its async form.
    function = getattr(runnable, "func", None) or getattr(runnable, "afunc", None)
    if function is not None:
        yield function
