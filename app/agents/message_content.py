"""Reads what a message holds beside its text: a provider's refusal, and blocks of data."""

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from app.agents import finish_reasons
from app.agents.finish_reasons import FinishKind

# Types of blocks of data: LangChain's own, and those of providers on the wire.
_DATA = {
    "image", "audio", "video", "file", "text-plain",
    "image_url", "audio_url", "video_url", "input_image", "input_audio", "input_file",
    "output_audio", "media", "document", "inline_data", "file_data",
}  # fmt: skip
# Keys that describe the data of a block and are none.
_ABOUT = {
    "type", "id", "index", "status", "mime_type", "title", "detail", "extras", "annotations"
}  # fmt: skip


def refusal_of(message: AIMessage) -> str | None:
    """The text of a refusal that the provider marks as one, else None.

    Such a message is whole, and this text is its answer. A message that a filter cut is no refusal.
    """
    if finish_reasons.of_message(message).kind is FinishKind.FILTERED:
        return None
    said = message.additional_kwargs.get("refusal")
    if not isinstance(said, str) or not said.strip():
        said = "".join(_refusals(message.content))
    return said if said.strip() else None


def blocks_of(message: BaseMessage) -> list[dict[str, Any]] | None:
    """The images, sounds and files of a message, as standard blocks if LangChain knows them.

    None if there are none. Text, reasoning, calls and citations are not among them.
    """
    found = [block for block in map(_data, _blocks(message)) if block is not None]
    if not any(block["type"] == "audio" for block in found):
        found += _audio(message)
    return found or None


def _audio(message: BaseMessage) -> Iterator[dict[str, Any]]:
    """The sound that OpenAI's and Google's clients put beside the content."""
    said = message.additional_kwargs.get("audio")
    if isinstance(said, bytes) and said:
        sound = base64.b64encode(said).decode()
        yield {"type": "audio", "base64": sound, "mime_type": "audio/wav"}
    elif isinstance(said, Mapping) and said.get("data"):
        yield {"type": "audio", "base64": said["data"], "transcript": said.get("transcript")}


def _refusals(content: str | list[Any]) -> Iterator[str]:
    for block in map(_unwrapped, content if isinstance(content, list) else ()):
        if block.get("type") == "refusal" and isinstance(block.get("refusal"), str):
            yield block["refusal"]


def _blocks(message: BaseMessage) -> Iterator[dict[str, Any]]:
    try:
        blocks: list[Any] = list(message.content_blocks)
    except (AttributeError, KeyError, TypeError, ValueError):
        # LangChain translates by provider, and fails on a block that is not as it expects.
        blocks = message.content if isinstance(message.content, list) else []
    return map(_unwrapped, blocks)


def _unwrapped(block: Any) -> dict[str, Any]:
    """The block itself. LangChain wraps a block that it does not know."""
    if isinstance(block, dict) and block.get("type") == "non_standard":
        block = block.get("value")
    return block if isinstance(block, dict) else {}


def _data(block: dict[str, Any]) -> dict[str, Any] | None:
    """This block if it carries data, without the ids that LangChain makes up on each reading."""
    if block.get("type") == "image_generation_call":
        kind = f"image/{block.get('output_format') or 'png'}"
        about = {"type": "image", "mime_type": kind, "id": block.get("id")}
        block = {**about, "base64": block.get("result")}
    if block.get("type") not in _DATA or not any(block[key] for key in block.keys() - _ABOUT):
        return None
    made_up = str(block.get("id", "")).startswith("lc_")
    dropped = {"index", "id"} if made_up else {"index"}
    return {key: value for key, value in block.items() if key not in dropped}
