"""What a graph must be given beside a question, which callers have no way to send."""

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

from app.agents import introspection, source_inspection, sync_only

MESSAGES = "messages"
# Given to every graph with its thread and its steps.
_GIVEN = ("thread_id", "checkpoint_id", "checkpoint_ns", "checkpoint_map")


def default_context(graph: Pregel[Any, Any, Any, Any]) -> Any:
    """The context that a run has where nobody gives one: its fields at their defaults.

    None for a graph without a context, for a TypedDict, and where a field has no default.
    """
    schema = graph.context_schema
    if schema is None or is_typeddict(schema) or _required(schema, nullable=True):
        return None
    return schema()


def context(graph: Pregel[Any, Any, Any, Any]) -> list[str]:
    """Fields of its context without which it cannot work."""
    wanted = _required(graph.context_schema)
    manages = (source_inspection.mentions_configurable, source_inspection.looks_for_context)
    if wanted and any(does(function) for function in _functions(graph) for does in manages):
        return []
    return wanted


def takes_messages(graph: Pregel[Any, Any, Any, Any]) -> bool:
    """Whether it takes the question: a schema of its input may leave messages out."""
    builder = getattr(graph, "builder", None)
    return builder is None or MESSAGES in builder.schemas[builder.input_schema]


def inputs(graph: Pregel[Any, Any, Any, Any]) -> list[str]:
    """Keys of its input that the author asks of callers, or without which its first step fails."""
    builder = getattr(graph, "builder", None)
    if builder is None:
        return []
    needed: list[str] = []
    for node in _first(builder):
        schema = builder.nodes[node].input_schema
        if not is_typeddict(schema):  # which nobody checks, so that its keys may be missing
            needed += _required(schema, nullable=True)
    if builder.input_schema is not builder.state_schema and not _is_made(builder.input_schema):
        spared = set[str]().union(*map(source_inspection.keys_with_default, _functions(graph)))
        needed += [key for key in _required(builder.input_schema) if key not in spared]
    return [k for k in dict.fromkeys(needed) if k != MESSAGES and not _has_value(graph, k)]


def configurable(graph: Pregel[Any, Any, Any, Any]) -> list[str]:
    """Keys that its first step takes out of `config["configurable"]`, with no way round it."""
    builder = getattr(graph, "builder", None)
    if builder is None:
        return []
    given = {*((graph.config or {}).get("configurable") or {}), *_GIVEN}
    functions = [f for node in _first(builder) for f in _of(builder.nodes[node].runnable)]
    wanted = [key for function in functions for key in source_inspection.keys(function)]
    return [key for key in (*wanted, *_of_model(graph)) if key not in given]


def _of_model(graph: Pregel[Any, Any, Any, Any]) -> Iterator[str]:
    """The key that names the model of an agent of `create_agent`, where none is named yet."""
    parts = list(sync_only.asked_async(graph))
    if (graph.config or {}).get("metadata", {}).get("ls_integration") != "langchain_create_agent":
        return
    owners = [type(getattr(part, "__self__", None)) for part in parts if inspect.ismethod(part)]
    if any(issubclass(owner, AgentMiddleware) for owner in owners):
        return  # which may ask another model
    for part in parts:
        if type(part).__name__ == "_ConfigurableModel" and not part._default_config.get("model"):
            yield f"{part._config_prefix}model"


def _required(schema: Any, *, nullable: bool = False) -> list[str]:
    """Its fields without a default; those that may be None only if `nullable` ones count."""
    hints = _hints(schema)
    if is_typeddict(schema):
        # Of a class whose annotations are texts, its own set of keys has the optional ones too.
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
    except (NameError, TypeError):  # names that only a type checker knows
        return dict(getattr(schema, "__annotations__", {}))


def _may_be_none(hint: Any) -> bool:
    while get_origin(hint) in (Annotated, Required):
        hint = get_args(hint)[0]
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def _has_value(graph: Pregel[Any, Any, Any, Any], key: str) -> bool:
    """Whether a key of the state has a value before anything is written, as an empty list is."""
    channel = graph.channels.get(key)
    return not isinstance(channel, BaseChannel) or channel.is_available()


def _is_made(schema: Any) -> bool:
    """Whether LangChain made the schema, of the states of an agent and all its middlewares."""
    return str(schema.__module__).startswith("langchain.")


def _first(builder: Any) -> Iterator[str]:
    """The nodes with which each run begins."""
    return (end for start, end in sorted(builder.edges) if start == START and end in builder.nodes)


def _functions(graph: Pregel[Any, Any, Any, Any]) -> Iterator[Any]:
    """The user's own functions that its nodes, its hooks and its tools are."""
    builder = getattr(graph, "builder", None)
    nodes = (node.runnable for node in builder.nodes.values()) if builder else ()
    parts = [function for node in nodes for function in _of(node)]
    parts += sync_only.asked_async(graph)
    for node in introspection.find_all(graph, ToolNode):
        for tool in node.tools_by_name.values():
            parts += [getattr(tool, "func", None), getattr(tool, "coroutine", None)]
    for part in parts:
        if inspect.isfunction(part) and not part.__module__.startswith(sync_only.LIBRARIES):
            yield part


def _of(runnable: Any) -> Iterator[Any]:
    """The function of a node that is one."""
    # The async form of a sync function is one of LangGraph's.
    function = getattr(runnable, "func", None) or getattr(runnable, "afunc", None)
    if function is not None:
        yield function
