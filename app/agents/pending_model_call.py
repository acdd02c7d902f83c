"""What a model call says of itself: the model, the tools that are bound, whose call it may be."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.language_models import BaseChatModel

from app.agents.call_tree import Place

# How create_agent, and create_react_agent before it, name the nodes of hooks.
_HOOK = re.compile(r".\.(before|after)_(agent|model)$|^(pre|post)_model_hook$")
# What binds tools to a call, and what makes no sense without them.
_TOOLS = ("tools", "functions")
_ABOUT_TOOLS = ("tool_choice", "parallel_tool_calls", "function_call")


@dataclass(slots=True, eq=False)
class PendingModelCall:
    """A call of a chat model that is about to be made, or is at work.

    `place` and `helper` are what was made of it: where it stands, and whether it is a helper's
    call. `last` marks the last turn of the run, which keeps the tools `kept`, and `call_ids` are
    the calls it became.
    """

    model: BaseChatModel | None
    tools: frozenset[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    place: Place | None = None
    helper: bool = False
    last: bool = False
    kept: frozenset[str] = frozenset()
    call_ids: list[UUID] = field(default_factory=list)


# The call that the present task is about to make; it is read by the callback that starts it.
asking: ContextVar[PendingModelCall | None] = ContextVar("watchkeeper_asking", default=None)
# Whether the present call asks for the last answer of a run that was stopped from outside.
is_final_call: ContextVar[bool] = ContextVar("watchkeeper_last_answer", default=False)
# Whether the present task runs a tool call of a ToolNode and not yet the tool: hooks do.
in_tool_wrapper: ContextVar[bool] = ContextVar("watchkeeper_around_tool", default=False)


def is_marked_helper(options: Mapping[str, Any], node: str) -> bool:
    """Whether the call is a helper's by the library's own word: a hook's, or for one value."""
    if options.get("ls_structured_output_format"):
        return True
    return in_tool_wrapper.get() or _is_hook(node)


@functools.lru_cache(maxsize=1024)
def _is_hook(node: str) -> bool:
    return _HOOK.search(node) is not None


def bound_tools(options: Mapping[str, Any]) -> frozenset[str]:
    """Names of the tools that are bound to a call, in whichever form."""
    bound = [name for key in _TOOLS for tool in _listed(options, key) for name in names(tool)]
    return frozenset(bound)


def names(tool: Any) -> Iterable[str]:
    """The names that one bound tool has: providers group and wrap them in different ways."""
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
    """The same options with no other tools than these."""
    left = dict(options)
    for key in _TOOLS:
        tools = [tool for tool in _listed(options, key) if set(names(tool)) & kept]
        left.pop(key, None)
        if tools:
            left[key] = tools
    if not any(key in left for key in _TOOLS):
        for key in _ABOUT_TOOLS:
            left.pop(key, None)
    return left


def requires_tool(options: Mapping[str, Any]) -> bool:
    """Whether the model must call a tool, as it must where output is asked for by one."""
    choice = options.get("tool_choice")
    return choice not in (None, "auto", "none", {"type": "auto"}, {"type": "none"})


def _listed(options: Mapping[str, Any], key: str) -> Sequence[Any]:
    tools = options.get(key)
    return tools if isinstance(tools, list | tuple) else ()
