"""ChatOpenAI as it should be called in production. Imported only when an agent uses it.

The library's own has no timeout, makes a pool of connections for each base URL, loses the usage of
streams on compatible endpoints and the refusals of streams, and takes half an answer for a whole
one.
"""

import json
import os
from collections.abc import AsyncIterator
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI

from app.agents import upstream
from app.agents.errors import IncompleteAnswer
from app.agents.incomplete_answers import StreamedArguments, raise_if_incomplete
from app.agents.upstream import TIMEOUT


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
        except json.JSONDecodeError as broken:
            raise IncompleteAnswer("the model's stream held a chunk that is not JSON") from broken
        raise_if_incomplete(whole, "openai", streamed)

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        result = await super()._agenerate(*args, **kwargs)
        for generation in result.generations:
            if isinstance(generation.message, AIMessage):
                # LangChain merges the two only later.
                told = generation.message.model_copy()
                told.response_metadata |= generation.generation_info or {}
                raise_if_incomplete(told, "openai", None)
        return result


def chat_openai(model: str, **options: Any) -> StrictChatOpenAI:
    """A model of OpenAI, or of a compatible endpoint named by OPENAI_BASE_URL.

    The key is OPENAI_API_KEY. Retries are the agent's (`RetryModel`), not the client's, so that
    they are bounded by the run's deadline and are seen.
    """
    base_url = options.pop("base_url", None) or os.environ.get("OPENAI_BASE_URL")
    defaults: dict[str, Any] = {
        "timeout": TIMEOUT,
        "max_retries": 0,
        "stream_usage": True,
        "http_async_client": upstream.current().client(),
    }
    if base_url:
        # Model names switch to the Responses API by themselves, which few endpoints have.
        defaults |= {"base_url": base_url, "use_responses_api": False}
    return StrictChatOpenAI(model=model, **{**defaults, **options})
