"""Normalizes the finish reasons of all providers.

Each provider uses its own words and fields. LangChain concatenates the words of streamed chunks
("stopstop"). An unknown word counts as a natural end.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from operator import attrgetter
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.outputs import LLMResult


class FinishKind(IntEnum):
    """How a message ended. If several reasons are present, the largest kind counts."""

    NOT_REPORTED = 0
    NATURAL = 1
    CUT = 2
    FILTERED = 3


@dataclass(frozen=True, slots=True)
class FinishReason:
    """How a message ended, and the provider's own word."""

    kind: FinishKind
    reason: str | None = None


_NOT_REPORTED = (
    "null none unspecified finish_reason_unspecified blocked_reason_unspecified not_finished"
)
_NATURAL = """
    stop stop_sequence stop_token end_turn end eos eos_token endoftext complete completed finish
    finished normal success tool_use tool_call tool_calls function_call function_calls
    stop_criteria_met alternative_status_final alternative_status_tool_calls
"""
_CUT = """
    length max_tokens max_token max_length max_output max_output_tokens max_completion_tokens
    model_length token_limit error_limit context_limit model_context_window_exceeded
    context_window_exceeded context_length_exceeded truncated alternative_status_truncated_final
    incomplete in_progress queued continuation pause_turn compaction load unload
    cancelled canceled user_cancel abort aborted timeout time_limit
    error failed network_error insufficient_system_resource other image_other no_image
    malformed_function_call malformed_response malformed_model_output malformed_tool_use
    unexpected_tool_call too_many_tool_calls missing_thought_signature
"""
_FILTERED = """
    content_filter content_filtered filtered blocked refusal safety recitation language blocklist
    prohibited_content spii escalation model_armor jailbreak pup_limited_disabled
    image_safety image_prohibited_content image_recitation
    guardrail_intervened intervened error_toxic toxic sensitive blacklist
    alternative_status_content_filter
"""
_KINDS: Mapping[str, FinishKind] = {
    word: kind
    for kind, words in zip(FinishKind, (_NOT_REPORTED, _NATURAL, _CUT, _FILTERED), strict=True)
    for word in words.split()
}
_KNOWN = re.compile(
    "|".join(sorted(_KINDS, key=len, reverse=True)).replace("_", "[_ -]"), re.IGNORECASE | re.ASCII
)
_JOINED = re.compile(f"(?:{_KNOWN.pattern})+", _KNOWN.flags)
# The prefix of an enum member that a client wrote as text.
_ENUM = re.compile(r"(?:finish|stop|block|blocked)_?reason\.", re.IGNORECASE)

# Keys of finish reasons. `status` is the Responses API's; `incomplete_details` is more precise.
_KEYS = (
    "finish_reason", "stop_reason", "done_reason", "stopReason", "finishReason",
    "completionReason", "incomplete_details", "native_finish_reason", "status",
    "amazon-bedrock-guardrailAction",
)  # fmt: skip

_PROMPT_KEYS = {"prompt_feedback", "block_reason", "is_blocked", "done"}
_ALL_KEYS = {*_KEYS, *_PROMPT_KEYS}

_NO_REASON = FinishReason(FinishKind.NOT_REPORTED)
_BY_KIND = attrgetter("kind")


def of_message(message: AIMessage) -> FinishReason:
    """Return how a message ended, whole or merged from streamed chunks."""
    return of(message.response_metadata, message.additional_kwargs, *_in_blocks(message.content))


def of_completion(result: LLMResult) -> FinishReason:
    """Return how the answer of a text completion model ended, which has no message."""
    first = [generation.generation_info or {} for generation in result.generations[0][:1]]
    return of(*first, result.llm_output or {})


def of(*metadata: Mapping[str, Any]) -> FinishReason:
    """Return how a message ended, from the provider's metadata, such as `generation_info`."""
    finish = _NO_REASON
    for part in metadata:
        if part:
            finish = max((finish, *_in_metadata(part)), key=_BY_KIND)
    return finish


def _in_blocks(content: str | list[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a filter's reason in a content block. LangChain marks it as a refusal."""
    for block in content if isinstance(content, list) else ():
        extras = block.get("extras") if isinstance(block, dict) else None
        if isinstance(extras, Mapping) and block.get("type") == "refusal":
            yield {"stop_reason": "refusal"} if extras.get("category") else extras


def _in_metadata(metadata: Mapping[str, Any]) -> Iterator[FinishReason]:
    present = _ALL_KEYS.intersection(metadata)
    for key in _KEYS if present else ():
        if key in present and metadata[key] is not None:
            yield from map(_parse, _words(metadata[key]))
    if not present.isdisjoint(_PROMPT_KEYS):
        yield from _in_prompt_feedback(metadata)


def _in_prompt_feedback(metadata: Mapping[str, Any]) -> Iterator[FinishReason]:
    feedback = metadata.get("prompt_feedback")
    blocked = feedback.get("block_reason") if isinstance(feedback, Mapping) else None
    for word in _words(blocked or metadata.get("block_reason")):
        if _parse(word).kind is not FinishKind.NOT_REPORTED:  # any reason means a blocked prompt
            yield FinishReason(FinishKind.FILTERED, word)
    if metadata.get("is_blocked") is True:
        yield FinishReason(FinishKind.FILTERED, "blocked")
    if metadata.get("done") is True and not metadata.get("done_reason"):
        yield FinishReason(FinishKind.NATURAL, "stop")  # older Ollama servers send no reason


def _words(metadata: object) -> list[str]:
    """Return the single words in a word, concatenated words, an enum member or a mapping."""
    if type(metadata) is str and metadata.lower() in _KINDS:
        return [metadata]
    if isinstance(metadata, Enum):
        return [metadata.name]
    if isinstance(metadata, Mapping):
        return _words(metadata.get("reason"))
    if not isinstance(metadata, str):
        return []
    text = _ENUM.sub("", metadata).strip()
    return _KNOWN.findall(text) if _JOINED.fullmatch(text) else [text]


def _parse(word: str) -> FinishReason:
    plain = word.lower()
    if plain not in _KINDS:
        plain = plain.replace("-", "_").replace(" ", "_")
    kind = _KINDS.get(plain, FinishKind.NATURAL) if plain else FinishKind.NOT_REPORTED
    return FinishReason(kind, None if kind is FinishKind.NOT_REPORTED else word)
