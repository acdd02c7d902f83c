"""Extracts an agent's answer from the messages and state keys that a run produced.

The question, tool results, text beside unexecuted tool calls and earlier answers are not answers.
If a graph answers in another key of its state, that key becomes `output`.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    ToolMessage,
    convert_to_messages,
)

from app.agents.models.message_content import blocks_of, refusal_of
from app.runs.errors import ModelFailed, NoAnswer
from app.runs.model import AgentAnswer

STRUCTURED = "structured_response"
_LISTS = (list, tuple)
# ModelRetryMiddleware reports a failed model by this sentence, without any other mark.
_RETRIES_SENTENCE = "Model call failed after "


@dataclass(frozen=True, slots=True)
class AnswerTools:
    """Names of the tools of an agent whose calls or results are answers."""

    output_tools: Set[str]
    direct_tools: Set[str]


def as_messages(value: Any) -> list[BaseMessage]:
    """Return the messages of a state, converting dicts in a provider's format."""
    if not isinstance(value, _LISTS):
        return []
    if all(isinstance(message, BaseMessage) for message in value):
        return list(value)
    try:
        return list(convert_to_messages(value))
    except (ValueError, TypeError, KeyError, NotImplementedError):
        return []


def new_messages(
    messages: Sequence[BaseMessage], before: Set[str], question_id: str
) -> list[BaseMessage]:
    """Return the messages that this run added: after its question, and not in `before`."""
    questions = [at for at, message in enumerate(messages) if message.id == question_id]
    since = messages[questions[-1] + 1 :] if questions else messages
    return [message for message in since if message.id is None or message.id not in before]


def answer_in(
    messages: Sequence[BaseMessage], changed: Mapping[str, Any], tools: AnswerTools
) -> AgentAnswer:
    """Return the answer from a run's new messages and the other state keys that it changed.

    Raises ModelFailed if the model's reply is empty, and NoAnswer if the agent gave no reply.
    """
    output = changed.get(STRUCTURED)
    direct = tools.direct_tools | (tools.output_tools if output is not None else set())
    message = _answer_message(messages, direct)
    if message is None and output is not None:
        return AgentAnswer("", output=output)
    if message is None:
        others = {key: value for key, value in changed.items() if key != STRUCTURED}
        if not others:
            raise NoAnswer
        return in_other_keys(others)
    text = str(message.text).strip()
    if isinstance(message, AIMessage) and text.startswith(_RETRIES_SENTENCE):
        raise ModelFailed
    refusal = refusal_of(message) if isinstance(message, AIMessage) else None
    plain = isinstance(message.content, str) and not message.additional_kwargs
    blocks = None if plain else blocks_of(message)
    if not (text or refusal or blocks or output is not None):
        raise ModelFailed
    answer = text_of(message) if text else refusal or ""
    return AgentAnswer(
        answer, output=blocks if output is None else output, refused=refusal is not None
    )


def in_other_keys(changed: Mapping[str, Any]) -> AgentAnswer:
    """Return the answer from a graph's own state keys. A single string is also its text."""
    values = list(changed.values())
    only_text = len(values) == 1 and isinstance(values[0], str)
    return AgentAnswer(values[0] if only_text else "", output=dict(changed))


def text_of(message: BaseMessage) -> str:
    """Return the message's text."""
    return str(message.text)


def _answer_message(messages: Sequence[BaseMessage], direct: Set[str]) -> BaseMessage | None:
    """Return the last message that addresses the caller."""
    for message in reversed(messages):
        match message:
            case AIMessage():
                return None if message.tool_calls else message
            case ToolMessage():
                if message.status != "error" and message.name in direct:
                    return message
            case HumanMessage():
                if message.name:
                    return message
            case ChatMessage():
                if message.role in ("assistant", "ai"):
                    return message
            case _:
                continue
    return None
