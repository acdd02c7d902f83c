"""ChatOpenAI with production defaults. Imported only if an agent uses it.

The library's ChatOpenAI has no timeout, and opens a connection pool for each base URL. It loses
the usage of streams on compatible endpoints, loses refusals in streams, and accepts truncated
answers.
"""

import json
import os
from collections.abc import AsyncIterator
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI

from app.agents.errors import IncompleteAnswer
from app.agents.models import upstream
from app.agents.models.incomplete_answers import StreamedArguments, raise_if_incomplete
from app.agents.models.upstream import TIMEOUT


class StrictChatOpenAI(ChatOpenAI):
    """Raises IncompleteAnswer for a stream cut short or tool arguments that are not JSON."""

    def _convert_chunk_to_generation_chunk(
        self, chunk: dict[str, Any], *args: Any, **kwargs: Any
    ) -> ChatGenerationChunk | None:
        converted = super()._convert_chunk_to_generation_chunk(chunk, *args, **kwargs)
        delta = next((choice.get("delta") for choice in chunk.get("choices") or ()), None)
        if converted is not None and delta and (refusal := delta.get("refusal")):
            converted.message.additional_kwargs["refusal"] = refusal
        return converted

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        streamed, whole = StreamedArguments(), AIMessageChunk(content="")
        try:
            async for chunk in super()._astream(*args, **kwargs):
                if isinstance(chunk.message, AIMessageChunk):
                    streamed.add(chunk.message)
                    whole.response_metadata |= chunk.message.response_metadata
                    whole.response_metadata |= chunk.generation_info or {}
                yield chunk
        except json.JSONDecodeError as invalid:
            raise IncompleteAnswer("the model's stream held a chunk that is not JSON") from invalid
        raise_if_incomplete(whole, "openai", streamed)

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        result = await super()._agenerate(*args, **kwargs)
        for generation in result.generations:
            if isinstance(generation.message, AIMessage):
                # LangChain merges the two only later.
                merged = generation.message.model_copy()
                merged.response_metadata |= generation.generation_info or {}
                raise_if_incomplete(merged, "openai", None)
        return result


def chat_openai(model: str, **options: Any) -> StrictChatOpenAI:
    """Return a model of OpenAI, or of the compatible endpoint in OPENAI_BASE_URL.

    The key is OPENAI_API_KEY. The agent retries (`RetryModel`), not the client. The run's deadline
    then bounds the retries, and they are visible.
    """
    base_url = options.pop("base_url", None) or os.environ.get("OPENAI_BASE_URL")
    defaults: dict[str, Any] = {
        "timeout": TIMEOUT,
        "max_retries": 0,
        "stream_usage": True,
        "http_async_client": upstream.current().client(),
    }
    if base_url:
        # Some model names select the Responses API, which few endpoints support.
        defaults |= {"base_url": base_url, "use_responses_api": False}
    return StrictChatOpenAI(model=model, **{**defaults, **options})
