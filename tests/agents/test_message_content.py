"""Refusals and data blocks are found in the messages of every provider."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage

from app.agents.models.message_content import blocks_of, refusal_of

NO = "I will not help with that."
REFUSAL = {"type": "refusal", "refusal": NO}
OPENAI = {"model_provider": "openai"}
REFUSED: dict[str, AIMessage] = {
    "chat completions": AIMessage("", additional_kwargs={"refusal": NO}),
    "in a block": AIMessage([REFUSAL]),
    "responses": AIMessage([{**REFUSAL, "id": "msg_1"}], response_metadata=OPENAI),
    "responses, in pieces": AIMessage(
        [{"type": "refusal", "refusal": "I will not "}, {"type": "refusal", "refusal": NO[11:]}]
    ),
    "beside text": AIMessage([{"type": "text", "text": "Hm."}, REFUSAL]),
    "wrapped": AIMessage([{"type": "non_standard", "value": REFUSAL}]),
    "beside an empty one": AIMessage([REFUSAL], additional_kwargs={"refusal": None}),
    "merged": AIMessageChunk(content="", additional_kwargs={"refusal": "I will not "})
    + AIMessageChunk(content="", additional_kwargs={"refusal": NO[11:]}),
}
NOT_REFUSED: dict[str, AIMessage] = {
    "an answer": AIMessage("No."),
    "nothing said": AIMessage("", additional_kwargs={"refusal": ""}),
    "none": AIMessage("Yes.", additional_kwargs={"refusal": None}),
    "not a text": AIMessage([{"type": "refusal", "refusal": None}]),
    "anthropic's filter": AIMessage([REFUSAL], response_metadata={"stop_reason": "refusal"}),
    "gemini's filter": AIMessage([{**REFUSAL, "extras": {"finish_reason": "SAFETY"}}]),
    "openai's filter": AIMessage(
        "", additional_kwargs={"refusal": NO}, response_metadata={"finish_reason": "content_filter"}
    ),
}


@pytest.mark.parametrize("row", REFUSED)
def test_marked_refusal_has_its_text(row: str) -> None:
    """A refusal that a provider marks has its text."""
    assert refusal_of(REFUSED[row]) == NO


@pytest.mark.parametrize("row", NOT_REFUSED)
def test_other_messages_are_no_refusal(row: str) -> None:
    """No other message is a refusal, and a filtered one is none."""
    assert refusal_of(NOT_REFUSED[row]) is None


IMAGE = {"type": "image", "base64": "AAAA", "mime_type": "image/png"}
GOOGLE = {"model_provider": "google_genai"}
DATA_URL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
DRAWN = {"type": "image_generation_call", "id": "ig_1", "result": "AAAA", "output_format": "png"}
TEXT = {"type": "text", "text": "Here it is."}
THOUGHT = {"type": "reasoning", "reasoning": "Hm."}
HELD: dict[str, tuple[BaseMessage, list[dict[str, Any]]]] = {
    "standard": (AIMessage([IMAGE]), [IMAGE]),
    "beside text and thoughts": (AIMessage([THOUGHT, TEXT, IMAGE]), [IMAGE]),
    "two": (AIMessage([IMAGE, {**IMAGE, "base64": "BBBB"}]), [IMAGE, {**IMAGE, "base64": "BBBB"}]),
    "a url": (
        AIMessage([{"type": "video", "url": "https://a.example/v.mp4"}]),
        [{"type": "video", "url": "https://a.example/v.mp4"}],
    ),
    "a file": (AIMessage([{"type": "file", "file_id": "f1"}]), [{"type": "file", "file_id": "f1"}]),
    "a document": (
        AIMessage([{"type": "text-plain", "text": "a,b", "mime_type": "text/csv"}]),
        [{"type": "text-plain", "text": "a,b", "mime_type": "text/csv"}],
    ),
    "openai's url": (AIMessage([DATA_URL]), [IMAGE]),
    "gemini's": (AIMessage([DATA_URL], response_metadata=GOOGLE), [IMAGE]),
    "gemini's, streamed": (
        AIMessageChunk(content=[{**DATA_URL, "index": 0}], response_metadata=GOOGLE),
        [IMAGE],
    ),
    "of version 1": (AIMessage([IMAGE], response_metadata={"output_version": "v1"}), [IMAGE]),
    "drawn": (
        AIMessage([DRAWN], response_metadata=OPENAI),
        [{**IMAGE, "id": "ig_1", "extras": {"output_format": "png"}}],
    ),
    "drawn, by a client that LangChain does not know": (
        AIMessage([DRAWN]),
        [{**IMAGE, "id": "ig_1"}],
    ),
    "gemini's voice": (
        AIMessage("", additional_kwargs={"audio": b"\0\0\0"}),
        [{"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"}],
    ),
    "openai's voice": (
        AIMessage("", additional_kwargs={"audio": {"data": "AAAA", "transcript": "Hi."}}),
        [{"type": "audio", "base64": "AAAA", "transcript": "Hi."}],
    ),
    "wrapped": (AIMessage([{"type": "non_standard", "value": IMAGE}]), [IMAGE]),
    "of a tool": (ToolMessage([IMAGE], tool_call_id="1"), [IMAGE]),
}
BARE: dict[str, BaseMessage] = {
    "text": AIMessage("Here it is."),
    "text blocks": AIMessage([TEXT, {**TEXT, "annotations": [{"type": "citation", "url": "u"}]}]),
    "nothing": AIMessage(""),
    "reasoning": AIMessage([THOUGHT]),
    "anthropic's thoughts": AIMessage([{"type": "thinking", "thinking": "Hm.", "signature": "s"}]),
    "hidden thoughts": AIMessage([{"type": "redacted_thinking", "data": "AAAA"}]),
    "responses' thoughts": AIMessage(
        [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "AAAA"}],
        response_metadata=OPENAI,
    ),
    "calls": AIMessage([{"type": "tool_use", "id": "1", "name": "look", "input": {}}]),
    "of the provider's own": AIMessage([{"type": "server_tool_result", "output": "AAAA"}]),
    "not known": AIMessage([{"type": "non_standard", "value": {"type": "trace", "data": "AAAA"}}]),
    "an empty image": AIMessage([{"type": "image", "id": "i1", "mime_type": "image/png"}]),
    "an image that failed": AIMessage([{**DRAWN, "result": None}], response_metadata=OPENAI),
    "a refusal": AIMessage([REFUSAL]),
}


@pytest.mark.parametrize("row", HELD)
def test_data_blocks_become_standard_blocks(row: str) -> None:
    """Images, sounds and files of any provider become LangChain's standard blocks."""
    message, blocks = HELD[row]
    assert blocks_of(message) == blocks


@pytest.mark.parametrize("row", BARE)
def test_other_blocks_are_no_data(row: str) -> None:
    """Text, reasoning, calls and unknown blocks are no data."""
    assert blocks_of(BARE[row]) is None


@pytest.mark.parametrize(
    "block", [{"type": "image_url"}, {"type": "image_url", "image_url": 7}, {"type": "image"}, {}]
)
@pytest.mark.parametrize("metadata", [OPENAI, GOOGLE, {"model_provider": "anthropic"}, {}])
def test_malformed_block_hides_no_other(block: dict[str, Any], metadata: dict[str, str]) -> None:
    """A block on which LangChain's own translation fails does not hide the others."""
    found = blocks_of(AIMessage([block, IMAGE], response_metadata=metadata))
    assert found is not None
    assert IMAGE in found
