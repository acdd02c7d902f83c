"""Gives each tool call of a message an id of its own: LangGraph matches results to calls by id."""

from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage

_CALL_BLOCKS = ("tool_use", "tool_call", "function_call")


def complete(message: AIMessage) -> None:
    """Add an id where the model sent none, and number ids that it sent twice.

    LangGraph would fail after the tool has run, and two equal calls would have one key for their
    tools. A repeated turn gets the same numbers.
    """
    for call in message.tool_calls:
        if not call["id"]:
            call["id"] = f"call_{uuid4().hex}"
    if len({call["id"] for call in message.tool_calls}) < len(message.tool_calls):
        _number([(call, "id") for call in message.tool_calls])
        _number(_in_content(message))  # some providers read the calls there


def _number(calls: Sequence[tuple[Any, str]]) -> None:
    """Number each id that an earlier call has. Each call comes with the name of its id."""
    sent = Counter(call[name] for call, name in calls)
    seen = Counter[str]()
    for call, name in calls:
        own = call[name]
        seen[own] += 1
        number = seen[own]
        if number == 1:
            continue
        while sent[f"{own}-{number}"]:  # the model sent that one too
            number += 1
        call[name] = f"{own}-{number}"
        sent[call[name]] += 1


def _in_content(message: AIMessage) -> list[tuple[Any, str]]:
    blocks = message.content if isinstance(message.content, list) else []
    calls = [b for b in blocks if isinstance(b, dict) and b.get("type") in _CALL_BLOCKS]
    named = [(block, "call_id" if "call_id" in block else "id") for block in calls]
    return [(block, name) for block, name in named if isinstance(block.get(name), str)]
