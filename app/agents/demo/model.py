"""A chat model without API key or network, so that a first try runs the whole path.

It is not a language model: it matches the words of a question with the bound tools. Every answer
carries a label that says so.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCall, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field

from app.agents.demo.language import HAN, Question
from app.agents.demo.plan import Call, Tool, plan, result_text

MODEL_NAME = "demo"

# A piece streams as one token: a Chinese character, or a word with the preceding space.
_PIECE = re.compile(rf"\s*(?:[{HAN}][，。：；、）]*|[^\s{HAN}]+)|\s+")


class DemoChatModel(BaseChatModel):
    """Answers by matching words with the bound tools.

    The answer depends on the last human message, the messages after it, and the bound tools. The
    model has no state, so one instance serves any number of concurrent runs. Only the ids of tool
    calls are random. `tool_choice` is ignored: a tool is called only if the question fits it.
    """

    first_token_delay_s: float = Field(default=0.0, ge=0)
    token_delay_s: float = Field(default=0.0, ge=0)

    @property
    def model_name(self) -> str:
        """Always `demo`: a configurable name could hide that this is a demo."""
        return MODEL_NAME

    @property
    def _llm_type(self) -> str:
        return MODEL_NAME

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": MODEL_NAME, "demo": True}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(ls_provider="demo", ls_model_name=MODEL_NAME, ls_model_type="chat")

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools of any kind that LangChain can describe as a function."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reply = _reply(messages, kwargs.get("tools", ()))
        time.sleep(self._duration_s(reply))
        return ChatResult(generations=[_generation(reply)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reply = _reply(messages, kwargs.get("tools", ()))
        await asyncio.sleep(self._duration_s(reply))
        return ChatResult(generations=[_generation(reply)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        delay_s = self.first_token_delay_s
        for chunk in _chunks(_reply(messages, kwargs.get("tools", ()))):
            time.sleep(delay_s)
            yield chunk
            delay_s = self.token_delay_s

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        delay_s = self.first_token_delay_s
        for chunk in _chunks(_reply(messages, kwargs.get("tools", ()))):
            await asyncio.sleep(delay_s)
            yield chunk
            delay_s = self.token_delay_s

    def _duration_s(self, reply: AIMessage) -> float:
        """Return the delay of an unstreamed answer: the same as that of a streamed one."""
        after_the_first = max(len(list(_chunks(reply))) - 1, 0)
        return self.first_token_delay_s + after_the_first * self.token_delay_s


def _reply(messages: Sequence[BaseMessage], schemas: Sequence[dict[str, Any]]) -> AIMessage:
    # A provider-side tool has no function, so this model ignores it.
    tools = [Tool(schema["function"]) for schema in schemas if "function" in schema]
    answer = _answer(messages, tools)
    calls = [] if isinstance(answer, str) else [_tool_call(call) for call in answer]
    text = answer if isinstance(answer, str) else ""
    return AIMessage(
        content=text,
        tool_calls=calls,
        usage_metadata=_usage(messages, text, calls),
        response_metadata={
            "model_name": MODEL_NAME,
            "model_provider": "demo",
            "demo": True,
            "finish_reason": "tool_calls" if calls else "stop",
        },
    )


def _answer(messages: Sequence[BaseMessage], tools: Sequence[Tool]) -> list[Call] | str:
    """Return the next tool calls, or an answer from their results."""
    human = [n for n, message in enumerate(messages) if isinstance(message, HumanMessage)]
    last = human[-1] if human else -1
    question = Question(str(messages[last].text) if human else "")
    results = [m for m in messages[last + 1 :] if isinstance(m, ToolMessage)]
    phrases = question.phrases
    if results:
        return phrases.label + phrases.between.join(
            result_text(result, phrases) for result in results
        )
    planned = plan(question, tools)
    return phrases.label + planned if isinstance(planned, str) else planned


def _tool_call(call: Call) -> ToolCall:
    return tool_call(name=call.tool, args=call.arguments, id=f"call_{uuid.uuid4().hex[:12]}")


def _usage(messages: Sequence[BaseMessage], text: str, calls: Sequence[ToolCall]) -> UsageMetadata:
    """Return an estimate, so that usage is not empty."""
    output = text + "".join(call["name"] + json.dumps(call["args"]) for call in calls)
    read = sum(_tokens(str(message.text)) for message in messages)
    written = _tokens(output)
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)


def _tokens(text: str) -> int:
    """Estimate four letters or one Chinese character per token; at least one token."""
    han = len(re.findall(f"[{HAN}]", text))
    return han + (len(text) - han) // 4 + 1


def _generation(reply: AIMessage) -> ChatGeneration:
    reason = reply.response_metadata["finish_reason"]
    return ChatGeneration(message=reply, generation_info={"finish_reason": reason})


def _chunks(reply: AIMessage) -> Iterator[ChatGenerationChunk]:
    """Yield the reply in pieces. The last one carries the usage and the metadata."""
    for piece in _PIECE.findall(str(reply.text)):
        yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
    for index, call in enumerate(reply.tool_calls):
        name, arguments = call["name"], json.dumps(call["args"], ensure_ascii=False)
        for part in ({"name": name, "args": "", "id": call["id"]}, {"args": arguments}):
            chunk = tool_call_chunk(**part, index=index)
            yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[chunk]))
    yield ChatGenerationChunk(
        message=AIMessageChunk(
            content="",
            usage_metadata=reply.usage_metadata,
            response_metadata=reply.response_metadata,
            chunk_position="last",
        ),
        generation_info={"finish_reason": reply.response_metadata["finish_reason"]},
    )
