"""What models say that is broken or cut, chunk by chunk, as their clients would hand it on."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import Field

# One reply: in chunks where it is streamed, else in one piece; an exception is raised there.
Take = Sequence[AIMessageChunk | Exception] | AIMessage | Exception


class Utters(BaseChatModel):
    """A model that gives one take after the other, and its last one for ever."""

    takes: list[Any]
    provider: str = "openai"
    streaming: bool = False
    asked: list[list[BaseMessage]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "utters"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(ls_provider=self.provider, ls_model_type="chat")

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, Any]:
        return self.bind(tools=[t.name if isinstance(t, BaseTool) else str(t) for t in tools])

    def _take(self, messages: list[BaseMessage]) -> Any:
        self.asked.append(list(messages))
        return self.takes[min(len(self.asked), len(self.takes)) - 1]

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> ChatResult:
        take = self._take(messages)
        if isinstance(take, Exception):
            raise take
        assert isinstance(take, AIMessage), take
        return ChatResult(generations=[ChatGeneration(message=take)])

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> Iterator[ChatGenerationChunk]:
        take = self._take(messages)
        for chunk in take if isinstance(take, list | tuple) else [take]:
            if isinstance(chunk, Exception):
                raise chunk
            yield ChatGenerationChunk(message=chunk)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> ChatResult:
        return self._generate(messages)

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages):
            yield chunk


def word(text: str) -> AIMessageChunk:
    """A piece of text."""
    return AIMessageChunk(content=text)


def part(args: str, name: str | None = None, index: int | None = 0) -> AIMessageChunk:
    """A piece of a tool call; the first one names the tool."""
    call_id = f"call-{name}-{args}" if name else None
    call: Any = {"name": name, "args": args, "id": call_id, "index": index}
    return AIMessageChunk(content="", tool_call_chunks=[call])


def end(reason: str) -> AIMessageChunk:
    """The last chunk, which has the finish reason."""
    return AIMessageChunk(content="", response_metadata={"finish_reason": reason})


def whole(text: str = "", reason: str | None = "stop", **fields: Any) -> AIMessage:
    """A message in one piece."""
    metadata = {"finish_reason": reason} if reason else {}
    return AIMessage(text, response_metadata=metadata, **fields)


def invalid(args: str) -> dict[str, Any]:
    """A tool call whose arguments its client could not read."""
    return {"name": "look", "args": args, "id": "call-1", "error": None}


def call(order: str = "77") -> dict[str, Any]:
    """A tool call in one piece."""
    given = {"order": order}
    return {"name": "look", "args": given, "id": f"call-{order}", "type": "tool_call"}


CUT = '{"order": "77'

STREAMED: dict[str, Take] = {
    "no finish reason": [word("Your order "), word("is")],
    "cut in the arguments": [part(CUT, "look")],
    "cut before the arguments": [part("", "look")],
    "malformed arguments": [part(CUT, "look"), end("tool_calls")],
    "malformed beside whole": [
        part('{"order": "1"}', "look"), part(CUT, "look", 1), end("tool_calls")
    ],
    "arguments that are no object": [part('"77"', "look"), end("tool_calls")],
    "malformed chunk": [word("Your "), json.JSONDecodeError("secret-in-exception", "{", 1)],
    "arguments cut at the length limit": [part(CUT, "look"), end("length")],
    "whole arguments at the length limit": [part('{"order": "1"}', "look"), end("length")],
    "text cut at the length limit": [word("Your order is"), end("length")],
    "nothing at all": [end("stop")],
    "blanks": [word(" \n"), end("stop")],
}  # fmt: skip
NOT_STREAMED: dict[str, Take] = {
    "no finish reason": whole("Your order is", None),
    "malformed arguments": whole("", "tool_calls", invalid_tool_calls=[invalid(CUT)]),
    "malformed beside whole": whole(
        "", "tool_calls", tool_calls=[call()], invalid_tool_calls=[invalid(CUT)]
    ),
    "arguments cut at the length limit": whole("", "length", invalid_tool_calls=[invalid(CUT)]),
    "whole arguments at the length limit": whole("", "length", tool_calls=[call()]),
    "text cut at the length limit": whole("Your order is", "length"),
    "nothing at all": whole(""),
    "blanks": whole(" \n"),
    "a raw exception": json.JSONDecodeError("secret-in-exception", "{", 1),
}
