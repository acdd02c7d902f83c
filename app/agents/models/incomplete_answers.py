"""Rejects incomplete model answers before the agent uses them.

LangChain accepts truncated streams and repairs tool arguments that are not valid JSON. A tool
would then run with `{"order_id": "100` parsed as order 100.
"""

import json
from dataclasses import dataclass, field

from langchain_core.messages import AIMessage, AIMessageChunk

from app.agents.errors import FilteredAnswer, IncompleteAnswer
from app.agents.models import finish_reasons
from app.agents.models.finish_reasons import FinishKind, FinishReason

# Providers that always send a finish reason, streamed or not.
_ALWAYS_SEND_REASON = ("openai", "azure", "anthropic", "google_genai", "ollama")


@dataclass(slots=True)
class StreamedArguments:
    """The raw tool arguments of one streamed message, before LangChain repairs them."""

    arguments: dict[object, str] = field(default_factory=dict)
    _latest: object = 0

    def add(self, chunk: AIMessageChunk) -> None:
        """Add one chunk. Without an index, a part with an id starts another call."""
        for part in chunk.tool_call_chunks:
            index = part.get("index")
            if index is not None:
                self._latest = index
            elif part.get("id"):
                self._latest = part["id"]
            arguments_so_far = self.arguments.get(self._latest, "")
            self.arguments[self._latest] = arguments_so_far + (part.get("args") or "")


def raise_if_incomplete(
    message: AIMessage,
    provider: str,
    streamed: StreamedArguments | None,
    finish: FinishReason | None = None,
) -> None:
    """Raises IncompleteAnswer if the message is truncated or its tool arguments are invalid.

    Pass `finish` if the finish reason is already known.
    """
    finish = finish or finish_reasons.of_message(message)
    raise_if_cut(finish)
    if finish.kind is FinishKind.NOT_REPORTED and provider in _ALWAYS_SEND_REASON:
        raise IncompleteAnswer("the model's answer ended without a finish reason")
    raw = streamed.arguments.values() if streamed is not None else ()
    if message.invalid_tool_calls or not all(map(_is_object, raw)):
        raise IncompleteAnswer("the model sent tool arguments that are not a JSON object")


def raise_if_cut(finish: FinishReason) -> None:
    """Raises IncompleteAnswer, or FilteredAnswer if the provider's filter cut the answer.

    A text completion model has no message: use `finish_reasons.of_completion`.
    """
    if finish.kind is FinishKind.FILTERED:
        raise FilteredAnswer(f"the provider's filter cut the model's answer: {finish.reason}")
    if finish.kind is FinishKind.CUT:
        raise IncompleteAnswer(f"the model's answer was cut: {finish.reason}")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text or "{}"), dict)
    except ValueError:
        return False
