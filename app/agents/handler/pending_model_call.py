"""A chat model call before and while it runs: its model, its bound tools, its place."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.language_models import BaseChatModel

from app.agents.handler.call_tree import Place

# Node names of hooks in create_agent and create_react_agent.
_HOOK = re.compile(r".\.(before|after)_(agent|model)$|^(pre|post)_model_hook$")
# Options that bind tools, and options that are invalid without tools.
_TOOLS = ("tools", "functions")
_TOOL_OPTIONS = ("tool_choice", "parallel_tool_calls", "function_call")


@dataclass(slots=True, eq=False)
class PendingModelCall:
    """A chat model call that is about to start, or is in flight.

    `place` is its place in the call tree, and `helper` marks a helper's call. `last` marks the
    last turn of the run, which keeps only `kept_tools`. `counted` means that the next call to start
    counts already. `call_ids` are the callback ids of the calls that it started.
    """

    model: BaseChatModel | None
    tools: frozenset[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    place: Place | None = None
    helper: bool = False
    last: bool = False
    counted: bool = False
    kept_tools: frozenset[str] = frozenset()
    call_ids: list[UUID] = field(default_factory=list)


# The call that the current task is about to make. The start callback reads it.
current_model_call: ContextVar[PendingModelCall | None] = ContextVar(
    "watchkeeper_model_call", default=None
)
# Whether the current call asks for the final answer of a run that was stopped from outside.
is_final_call: ContextVar[bool] = ContextVar("watchkeeper_is_final_call", default=False)
# Whether the current task is in a ToolNode's call but not yet in the tool: hooks run there.
in_tool_wrapper: ContextVar[bool] = ContextVar("watchkeeper_in_tool_wrapper", default=False)


def is_marked_helper(options: Mapping[str, Any], node: str) -> bool:
    """Whether LangChain marks the call as a helper's: made by a hook, or for structured output."""
    if options.get("ls_structured_output_format"):
        return True
    return in_tool_wrapper.get() or _is_hook(node)


@functools.lru_cache(maxsize=1024)
def _is_hook(node: str) -> bool:
    return _HOOK.search(node) is not None


def bound_tools(options: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the tools that are bound to a call, in any format."""
    bound = [name for key in _TOOLS for tool in _listed(options, key) for name in names(tool)]
    return frozenset(bound)


def names(tool: Any) -> Iterable[str]:
    """Return the names in one bound tool. Providers group and wrap tools in different ways."""
    if isinstance(tool, str):
        return (tool,)
    if not isinstance(tool, Mapping):
        name = getattr(tool, "name", None) or getattr(tool, "__name__", None)
        return (name,) if isinstance(name, str) else ()
    if "function_declarations" in tool:
        return [name for inner in tool["function_declarations"] or () for name in names(inner)]
    for key in ("function", "toolSpec"):
        if isinstance(tool.get(key), Mapping):
            return names(tool[key])
    name = tool.get("name") or tool.get("title")
    return (name,) if isinstance(name, str) else ()


def without_tools(options: Mapping[str, Any], kept: frozenset[str]) -> dict[str, Any]:
    """Return the options with no other tools than `kept`."""
    remaining = dict(options)
    for key in _TOOLS:
        tools = [tool for tool in _listed(options, key) if set(names(tool)) & kept]
        remaining.pop(key, None)
        if tools:
            remaining[key] = tools
    if not any(key in remaining for key in _TOOLS):
        for key in _TOOL_OPTIONS:
            remaining.pop(key, None)
    return remaining


def requires_tool(options: Mapping[str, Any]) -> bool:
    """Whether the model must call a tool, as for structured output."""
    choice = options.get("tool_choice")
    return choice not in (None, "auto", "none", {"type": "auto"}, {"type": "none"})


def _listed(options: Mapping[str, Any], key: str) -> Sequence[Any]:
    tools = options.get(key)
    return tools if isinstance(tools, list | tuple) else ()
