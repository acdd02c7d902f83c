"""Reads the content of a message beside its text: a provider's refusal, and data blocks."""

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from app.agents.models import finish_reasons
from app.agents.models.finish_reasons import FinishKind

# Types of data blocks: LangChain's own, and those of providers.
_DATA_TYPES = {
    "image", "audio", "video", "file", "text-plain",
    "image_url", "audio_url", "video_url", "input_image", "input_audio", "input_file",
    "output_audio", "media", "document", "inline_data", "file_data",
}  # fmt: skip
# Keys of a block that hold no data.
_DESCRIPTIVE_KEYS = {
    "type", "id", "index", "status", "mime_type", "title", "detail", "extras", "annotations"
}  # fmt: skip


def refusal_of(message: AIMessage) -> str | None:
    """Return the text of a refusal that the provider marks as one, else None.

    A refusal is a complete message, and its text is the answer. A message that a filter cut is
    not a refusal.
    """
    if finish_reasons.of_message(message).kind is FinishKind.FILTERED:
        return None
    refusal = message.additional_kwargs.get("refusal")
    if not isinstance(refusal, str) or not refusal.strip():
        refusal = "".join(_refusals(message.content))
    return refusal if refusal.strip() else None


def blocks_of(message: BaseMessage) -> list[dict[str, Any]] | None:
    """Return the images, audio and files of a message, as standard blocks where possible.

    Returns None if there are none. Text, reasoning, calls and citations are not included.
    """
    found = [block for block in map(_data_block, _blocks(message)) if block is not None]
    if not any(block["type"] == "audio" for block in found):
        found += _audio(message)
    return found or None


def _audio(message: BaseMessage) -> Iterator[dict[str, Any]]:
    """Yield the audio that OpenAI's and Google's clients put beside the content."""
    audio = message.additional_kwargs.get("audio")
    if isinstance(audio, bytes) and audio:
        encoded = base64.b64encode(audio).decode()
        yield {"type": "audio", "base64": encoded, "mime_type": "audio/wav"}
    elif isinstance(audio, Mapping) and audio.get("data"):
        yield {"type": "audio", "base64": audio["data"], "transcript": audio.get("transcript")}


def _refusals(content: str | list[Any]) -> Iterator[str]:
    for block in map(_unwrapped, content if isinstance(content, list) else ()):
        if block.get("type") == "refusal" and isinstance(block.get("refusal"), str):
            yield block["refusal"]


def _blocks(message: BaseMessage) -> Iterator[dict[str, Any]]:
    try:
        blocks: list[Any] = list(message.content_blocks)
    except (AttributeError, KeyError, TypeError, ValueError):
        # LangChain converts by provider, and fails on a block in an unexpected format.
        blocks = message.content if isinstance(message.content, list) else []
    return map(_unwrapped, blocks)


def _unwrapped(block: Any) -> dict[str, Any]:
    """Return the original block: LangChain wraps unknown blocks."""
    if isinstance(block, dict) and block.get("type") == "non_standard":
        block = block.get("value")
    return block if isinstance(block, dict) else {}


def _data_block(block: dict[str, Any]) -> dict[str, Any] | None:
    """Return a data block without the ids that LangChain generates on each read."""
    if block.get("type") == "image_generation_call":
        mime_type = f"image/{block.get('output_format') or 'png'}"
        described = {"type": "image", "mime_type": mime_type, "id": block.get("id")}
        block = {**described, "base64": block.get("result")}
    if block.get("type") not in _DATA_TYPES or not any(
        block[key] for key in block.keys() - _DESCRIPTIVE_KEYS
    ):
        return None
    generated = str(block.get("id", "")).startswith("lc_")
    dropped = {"index", "id"} if generated else {"index"}
    return {key: value for key, value in block.items() if key not in dropped}
