"""Tells a whole answer of a model from half a one, before anything is done with it.

A stream that is cut, or tool arguments that are not JSON, are accepted and even repaired by the
libraries: a tool would run with `{"order_id": "100` read as order 100. The functions here refuse
such an answer.
"""

import json
from dataclasses import dataclass, field

from langchain_core.messages import AIMessage, AIMessageChunk

from app.agents import finish_reasons
from app.agents.errors import FilteredAnswer, IncompleteAnswer
from app.agents.finish_reasons import FinishKind, FinishReason

# Providers that always say why a message ended, streamed or not.
_SAY_WHY = ("openai", "azure", "anthropic", "google_genai", "ollama")


@dataclass(slots=True)
class StreamedArguments:
    """The tool arguments of one streamed message as they came, before anybody repairs them."""

    arguments: dict[object, str] = field(default_factory=dict)
    _latest: object = 0

    def add(self, chunk: AIMessageChunk) -> None:
        """Take in one chunk. Without an index, a part with an id begins another call."""
        for part in chunk.tool_call_chunks:
            index = part.get("index")
            if index is not None:
                self._latest = index
            elif part.get("id"):
                self._latest = part["id"]
            so_far = self.arguments.get(self._latest, "")
            self.arguments[self._latest] = so_far + (part.get("args") or "")


def raise_if_incomplete(
    message: AIMessage,
    provider: str,
    streamed: StreamedArguments | None,
    ending: FinishReason | None = None,
) -> None:
    """Raises IncompleteAnswer when the message is not what the model meant to say in full.

    `ending` is how it ended, where that is known already.
    """
    ending = ending or finish_reasons.of_message(message)
    raise_if_cut(ending)
    if ending.kind is FinishKind.NOT_REPORTED and provider in _SAY_WHY:
        raise IncompleteAnswer("the model's answer ended without a finish reason")
    raw = streamed.arguments.values() if streamed is not None else ()
    if message.invalid_tool_calls or not all(map(_is_object, raw)):
        raise IncompleteAnswer("the model sent tool arguments that are not a JSON object")


def raise_if_cut(ending: FinishReason) -> None:
    """Raises IncompleteAnswer, or FilteredAnswer if a filter of the provider's cut the answer.

    A model that completes text has no message: use `endings.of_completion`.
    """
    if ending.kind is FinishKind.FILTERED:
        raise FilteredAnswer(f"the provider's filter cut the model's answer: {ending.reason}")
    if ending.kind is FinishKind.CUT:
        raise IncompleteAnswer(f"the model's answer was cut: {ending.reason}")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text or "{}"), dict)
    except ValueError:
        return False
