"""The last turn of a run at its limit: an answer, whatever the model would still like to do."""

from typing import Any, TypeVar

from langchain_core.messages import AIMessage

from app.agents.message_content import blocks_of, refusal_of

M = TypeVar("M", bound=AIMessage)

# Content blocks by which providers repeat the calls of a message.
_CALL_BLOCKS = ("tool_use", "tool_call", "function_call", "tool_call_chunk", "input_json_delta")
_CALL_KEYS = ("tool_calls", "function_call")
_ANSWER, _ACTION = "Final Answer:", "\nAction:"


def fixed_sentence(limit: int) -> str:
    """What stands for an answer that no model wrote."""
    turns = "1 iteration" if limit == 1 else f"{limit} iterations"
    return f"No answer was found within the limit of {turns}."


def cut(message: M, kept: frozenset[str] = frozenset()) -> M:
    """The message without its calls of tools other than these."""
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
    """Whether it says nothing to whoever asked."""
    said = message.text.strip() or blocks_of(message) or refusal_of(message)
    return not (said or message.tool_calls)


def with_text(message: M, text: str) -> M:
    """The message with this text as its content."""
    return message.model_copy(update={"content": text})


def _is_call(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _CALL_BLOCKS


def final_text(text: str) -> str:
    """The answer in what a model said at last; one that still asks for a tool gave none.

    Models that call tools in words (ReAct) mark their answer in words too.
    """
    if _ANSWER in text:
        return text.rpartition(_ANSWER)[2].strip()
    return "" if _ACTION in f"\n{text}" else text.strip()
