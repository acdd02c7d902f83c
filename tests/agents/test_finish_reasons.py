"""A cut message is recognised by every provider's words, wherever they are."""

from enum import Enum
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import Generation, LLMResult

from app.agents.errors import FilteredAnswer, IncompleteAnswer
from app.agents.models import finish_reasons, model_responses
from app.agents.models.finish_reasons import FinishKind
from app.agents.models.incomplete_answers import raise_if_cut, raise_if_incomplete
from app.agents.models.retry import is_retryable


class FinishReason(Enum):
    """As Google's client has its reasons, before it writes them down."""

    MAX_TOKENS = 2
    BLOCKED_REASON_UNSPECIFIED = 0
    JAILBREAK = 6


Metadata = dict[str, Any]
NATURAL: dict[str, Metadata] = {
    "openai": {"finish_reason": "stop"},
    "openai, calls": {"finish_reason": "tool_calls"},
    "openai, long ago": {"finish_reason": "function_call"},
    "responses": {"status": "completed", "incomplete_details": None},
    "anthropic": {"stop_reason": "end_turn", "stop_sequence": None},
    "anthropic, sequence": {"stop_reason": "stop_sequence", "stop_sequence": "\n"},
    "google": {"finish_reason": "STOP", "safety_ratings": [], "is_blocked": False},
    "google, nothing blocked": {
        "finish_reason": "STOP", "prompt_feedback": {"block_reason": 0, "safety_ratings": []}
    },
    "google, unspecified": {
        "finish_reason": "STOP",
        "prompt_feedback": {"block_reason": FinishReason.BLOCKED_REASON_UNSPECIFIED},
    },
    "google, twice": {"finish_reason": "STOPSTOP"},
    "vertex, each chunk": {"finish_reason": "FINISH_REASON_UNSPECIFIED" * 3 + "STOP"},
    "tongyi, each chunk": {"finish_reason": "null" * 2000 + "stop"},
    "ollama": {"done": True, "done_reason": "stop", "finish_reason": None},
    "ollama, old": {"done": True},
    "bedrock": {"stopReason": "end_turn", "metrics": {"latencyMs": [1]}},
    "bedrock, guarded": {"stop_reason": "stop", "amazon-bedrock-guardrailAction": "NONE"},
    "titan": {"completionReason": "FINISH"},
    "cohere": {"finish_reason": "COMPLETE"},
    "huggingface": {"finish_reason": "eos_token"},
    "vllm": {"finish_reason": "stop", "stop_reason": 128009},
    "a word of its own": {"finish_reason": "wavelength"},
}  # fmt: skip
CUT: dict[str, Metadata] = {
    "openai": {"finish_reason": "length"},
    "responses": {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
    "responses, without details": {"status": "incomplete"},
    "responses, cancelled": {"status": "cancelled"},
    "anthropic": {"stop_reason": "max_tokens"},
    "anthropic, window": {"stop_reason": "model_context_window_exceeded", "finish_reason": None},
    "anthropic, paused": {"stop_reason": "pause_turn"},
    "google": {"finish_reason": "MAX_TOKENS"},
    "google, member": {"finish_reason": FinishReason.MAX_TOKENS},
    "google, member's text": {"finish_reason": "FinishReason.MAX_TOKENS"},
    "google, call": {"finish_reason": "MALFORMED_FUNCTION_CALL"},
    "google, other": {"finish_reason": "OTHER"},
    "google, late": {"finish_reason": "STOPMAX_TOKENS"},
    "ollama": {"done": True, "done_reason": "length", "finish_reason": None},
    "ollama, loaded": {"done": True, "done_reason": "load"},
    "bedrock": {"stopReason": "max_tokens"},
    "bedrock, call": {"stopReason": "malformed_tool_use"},
    "titan": {"completionReason": "LENGTH"},
    "ai21": {"finishReason": {"reason": "length"}},
    "mistral": {"finish_reason": "model_length"},
    "cohere": {"finish_reason": "MAX_TOKENS"},
    "cohere, error": {"finish_reason": "ERROR"},
    "cohere, error in each chunk": {"finish_reason": "ERRORERROR_LIMIT"},
    "huggingface": {"finish_reason": "length"},
    "deepseek": {"finish_reason": "insufficient_system_resource"},
    "watsonx": {"stop_reason": "time_limit"},
    "openrouter": {"finish_reason": "stop", "native_finish_reason": "MAX_TOKENS"},
}
FILTERED: dict[str, Metadata] = {
    "openai": {"finish_reason": "content_filter"},
    "azure": {"finish_reason": "content_filter", "content_filter_results": {"hate": {}}},
    "responses": {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
    "anthropic": {"stop_reason": "refusal", "finish_reason": None},
    "anthropic, with details": {
        "stop_reason": "refusal", "stop_details": {"type": "refusal", "category": "cyber"}
    },
    **{
        f"google, {word}": {"finish_reason": word}
        for word in (
            "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY",
            "IMAGE_PROHIBITED_CONTENT", "LANGUAGE", "MODEL_ARMOR", "SAFETYSAFETY", "STOPSAFETY",
        )
    },
    "google, prompt": {"prompt_feedback": {"block_reason": "SAFETY"}},
    "google, prompt for another reason": {"prompt_feedback": {"block_reason": "OTHER"}},
    "google, prompt, member": {"prompt_feedback": {"block_reason": FinishReason.JAILBREAK}},
    "vertex": {"is_blocked": True, "finish_reason": "STOP"},
    "bedrock": {"stopReason": "guardrail_intervened"},
    "bedrock, content": {"stopReason": "content_filtered"},
    "bedrock, body": {"stop_reason": "stop", "amazon-bedrock-guardrailAction": "INTERVENED"},
    "titan": {"completionReason": "CONTENT_FILTERED"},
    "cohere": {"finish_reason": "ERROR_TOXIC"},
    "zhipu": {"finish_reason": "sensitive"},
}  # fmt: skip
KINDS = {FinishKind.NATURAL: NATURAL, FinishKind.CUT: CUT, FinishKind.FILTERED: FILTERED}
TABLE = [
    pytest.param(metadata, kind, id=f"{kind.name}: {row}")
    for kind, rows in KINDS.items()
    for row, metadata in rows.items()
]


@pytest.mark.parametrize(("metadata", "kind"), TABLE)
def test_finish_reason_is_found(metadata: Metadata, kind: FinishKind) -> None:
    """The finish reason is found in the response, beside the content and in a chunk."""
    for message in (
        AIMessage("Half of a sent", response_metadata=metadata),
        AIMessage("Half of a sent", additional_kwargs=metadata),
        AIMessageChunk(content="Half of a sent", response_metadata=metadata),
    ):
        assert finish_reasons.of_message(message).kind is kind
    assert finish_reasons.of({}, metadata).kind is kind


@pytest.mark.parametrize(("metadata", "kind"), TABLE)
def test_cut_answer_is_refused(metadata: Metadata, kind: FinishKind) -> None:
    """A cut answer is refused. A retry may help unless a filter cut it."""
    message = AIMessage("Half of a sent", response_metadata=metadata)
    if kind is FinishKind.NATURAL:
        raise_if_incomplete(message, "openai", None)
        return
    with pytest.raises(IncompleteAnswer) as refused:
        raise_if_incomplete(message, "anybody", None)
    assert isinstance(refused.value, FilteredAnswer) is (kind is FinishKind.FILTERED)
    assert is_retryable(refused.value) is (kind is FinishKind.CUT)
    with pytest.raises(type(refused.value)):
        raise_if_cut(finish_reasons.of(metadata))


def test_finish_reason_of_a_completion_is_found() -> None:
    """A completion has its finish reason beside its text, or beside all texts."""
    infos: list[tuple[Metadata | None, Metadata | None]] = [
        ({"finish_reason": "length"}, None),
        (None, {"finish_reason": "length"}),
    ]
    for info, output in infos:
        result = LLMResult(
            generations=[[Generation(text="H", generation_info=info)]], llm_output=output
        )
        assert finish_reasons.of_completion(result).kind is FinishKind.CUT


@pytest.mark.parametrize(
    "metadata", [{}, {"finish_reason": None}, {"finish_reason": ""}, {"done": False}, {"status": 7}]
)
def test_missing_finish_reason_is_refused(metadata: Metadata) -> None:
    """An answer without a finish reason is refused if its provider always gives one."""
    message = AIMessage("Half of a sent", response_metadata=metadata)
    assert finish_reasons.of_message(message) == finish_reasons.FinishReason(
        FinishKind.NOT_REPORTED
    )
    raise_if_incomplete(message, "somebody", None)
    for provider in ("openai", "azure", "anthropic", "google_genai", "ollama"):
        with pytest.raises(IncompleteAnswer):
            raise_if_incomplete(message, provider, None)


@pytest.mark.parametrize("extras", [{"category": "cyber"}, {"finish_reason": "SAFETY"}])
def test_filter_in_a_block_is_found(extras: dict[str, str]) -> None:
    """A filter's word may be in a content block alone."""
    block = {"type": "refusal", "refusal": "", "extras": extras}
    assert finish_reasons.of_message(AIMessage([block])).kind is FinishKind.FILTERED


def test_merged_finish_reasons_are_separated() -> None:
    """Finish reasons that LangChain has joined across chunks are separated."""
    chunks = [AIMessageChunk(content="a", response_metadata={"finish_reason": None})]
    for word in ("STOP", "MAX_TOKENS"):
        chunks.append(AIMessageChunk(content="b", response_metadata={"finish_reason": word}))
    merged = chunks[0] + chunks[1] + chunks[2]
    assert merged.response_metadata["finish_reason"] == "STOPMAX_TOKENS"
    assert isinstance(merged, AIMessageChunk)
    assert finish_reasons.of_message(merged) == finish_reasons.FinishReason(
        FinishKind.CUT, "MAX_TOKENS"
    )


REASONS: dict[str, tuple[Metadata, str | None]] = {
    "as it is": ({"finish_reason": "stop"}, "stop"),
    "in another key": ({"finish_reason": None, "done_reason": "length"}, "length"),
    "joined": ({"finish_reason": "STOPSTOP"}, "STOP"),
    "of a status": (
        {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
        "max_output_tokens",
    ),
    "of a prompt": ({"prompt_feedback": {"block_reason": FinishReason.JAILBREAK}}, "JAILBREAK"),
    "a word of its own": ({"finish_reason": "wavelength"}, "wavelength"),
    "none": ({"finish_reason": "null"}, None),
}


@pytest.mark.parametrize("row", REASONS)
def test_reason_is_the_providers_word(row: str) -> None:
    """The reported reason is the provider's own word, once."""
    metadata, reason = REASONS[row]
    assert model_responses.finish_reason(AIMessage("", response_metadata=metadata)) == reason
