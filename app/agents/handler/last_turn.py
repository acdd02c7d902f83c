"""Reduces the last reply of a run at its limit to an answer, without further tool calls."""

from typing import Any, TypeVar

from langchain_core.messages import AIMessage

from app.agents.models.message_content import blocks_of, refusal_of

M = TypeVar("M", bound=AIMessage)

# Content blocks by which providers repeat the calls of a message.
_CALL_BLOCKS = ("tool_use", "tool_call", "function_call", "tool_call_chunk", "input_json_delta")
_CALL_KEYS = ("tool_calls", "function_call")
_ANSWER, _ACTION = "Final Answer:", "\nAction:"


def fixed_sentence(limit: int) -> str:
    """Return the answer if no model wrote one."""
    turns = "1 iteration" if limit == 1 else f"{limit} iterations"
    return f"No answer was found within the limit of {turns}."


def cut(message: M, kept: frozenset[str] = frozenset()) -> M:
    """Return the message without calls of tools other than `kept`."""
    update: dict[str, Any] = {
        "tool_calls": [call for call in message.tool_calls if call["name"] in kept],
        "invalid_tool_calls": [],
    }
    if not update["tool_calls"]:
        more = message.additional_kwargs
        update["additional_kwargs"] = {k: v for k, v in more.items() if k not in _CALL_KEYS}
        if hasattr(message, "tool_call_chunks"):
            update["tool_call_chunks"] = []
        if isinstance(message.content, list):
            update["content"] = [part for part in message.content if not _is_call(part)]
    return message.model_copy(update=update)


def is_empty(message: AIMessage) -> bool:
    """Whether the message has no content for the caller."""
    content = message.text.strip() or blocks_of(message) or refusal_of(message)
    return not (content or message.tool_calls)


def with_text(message: M, text: str) -> M:
    """Return the message with this text as its content."""
    return message.model_copy(update={"content": text})


def _is_call(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _CALL_BLOCKS


def final_text(text: str) -> str:
    """Return the answer in a model's final text; empty if it still requests a tool.

    Agents that call tools in text (ReAct) mark the answer in text too.
    """
    if _ANSWER in text:
        return text.rpartition(_ANSWER)[2].strip()
    return "" if _ACTION in f"\n{text}" else text.strip()
