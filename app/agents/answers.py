"""What an agent's answer is: what it said to this question, and nothing else.

Not the question, a tool's row, the text beside calls that were not made, or an earlier answer. A
graph that answers in another key of its state has that as `output`.
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

from app.agents.message_content import blocks_of, refusal_of
from app.runs.errors import ModelFailed, NoAnswer
from app.runs.model import AgentAnswer

STRUCTURED = "structured_response"
_LISTS = (list, tuple)
# How ModelRetryMiddleware speaks for a model that failed; it gives its words no other mark.
_RETRIES_SENTENCE = "Model call failed after "


@dataclass(frozen=True, slots=True)
class AnswerTools:
    """What is known of an agent that tells its answers: the tools that give one by themselves."""

    output_tools: Set[str]
    direct_tools: Set[str]


def as_messages(value: Any) -> list[BaseMessage]:
    """The messages of a state, which may hold them as the dicts of a provider's client."""
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
    """Those that came with this run: after its question, and not there before."""
    asked = [at for at, message in enumerate(messages) if message.id == question_id]
    since = messages[asked[-1] + 1 :] if asked else messages
    return [message for message in since if message.id is None or message.id not in before]


def answer_in(
    said: Sequence[BaseMessage], changed: Mapping[str, Any], names: AnswerTools
) -> AgentAnswer:
    """The answer in what a run left: its new messages, and other keys that it changed.

    Raises ModelFailed where the model said nothing, and NoAnswer where the agent did not.
    """
    output = changed.get(STRUCTURED)
    direct = names.direct_tools | (names.output_tools if output is not None else set())
    message = _last_word(said, direct)
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
    """The answer of a graph that gives it in keys of its own; a single text is its words too."""
    values = list(changed.values())
    only_text = len(values) == 1 and isinstance(values[0], str)
    return AgentAnswer(values[0] if only_text else "", output=dict(changed))


def text_of(message: BaseMessage) -> str:
    """Its text."""
    return str(message.text)


def _last_word(said: Sequence[BaseMessage], direct: Set[str]) -> BaseMessage | None:
    """The last message that speaks to whoever asked."""
    for message in reversed(said):
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
