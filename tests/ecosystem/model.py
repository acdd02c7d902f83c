"""A chat model that follows a script and, like a real provider, refuses a broken history.

It needs no key and no network. Its reply is a function of the messages and of the tools that were
bound. It remembers what it was asked, and in which run.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolCall,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field

from app.runs.deadline import current

USAGE: Any = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


class BrokenHistory(ValueError):
    """What a provider answers with a 400."""


@dataclass(frozen=True)
class Asked:
    """One call of a model: what it was asked with, in which run."""

    messages: Sequence[BaseMessage]
    tools: tuple[str, ...]
    run_id: str

    @property
    def instructions(self) -> str:
        """The text of the system messages."""
        return "\n".join(str(m.text) for m in self.messages if isinstance(m, SystemMessage))

    @property
    def question(self) -> str:
        """The text of the last human message."""
        questions = [str(m.text) for m in self.messages if isinstance(m, HumanMessage)]
        return questions[-1] if questions else ""

    @property
    def text(self) -> str:
        """The text of all messages."""
        return "\n".join(str(m.text) for m in self.messages)

    @property
    def turn(self) -> int:
        """How many replies of a model follow the last human message."""
        turn = 0
        for message in self.messages:
            turn = 0 if isinstance(message, HumanMessage) else turn + _is_reply(message)
        return turn

    @property
    def results(self) -> list[str]:
        """The results of tools after the last human message."""
        results: list[str] = []
        for message in self.messages:
            if isinstance(message, HumanMessage):
                results = []
            elif isinstance(message, ToolMessage):
                results.append(str(message.text))
        return results


Line: TypeAlias = "str | AIMessage | Exception | Callable[[Asked], Line]"


def call(name: str, /, **arguments: Any) -> ToolCall:
    """A tool call; the model gives it an id of its own each time it makes it."""
    return ToolCall(name=name, args=arguments, id=None, type="tool_call")


def calls(*requests: ToolCall | str, text: str = "") -> AIMessage:
    """A turn that asks for tools, perhaps with text beside."""
    made = [call(r) if isinstance(r, str) else r for r in requests]
    return AIMessage(text, tool_calls=made)


def loops(*requests: ToolCall | str, answer: str = "concluded") -> Callable[[Asked], Line]:
    """Ask for these tools in each turn, for as long as there are tools; then answer."""
    return lambda asked: calls(*requests) if asked.tools else answer


def last_result(prefix: str = "I read") -> Callable[[Asked], Line]:
    """Answer with what the last tool returned."""
    return lambda asked: f"{prefix}: {asked.results[-1] if asked.results else 'nothing'}"


class Model(BaseChatModel):
    """`script` has one line for each turn since the last question; the last one is repeated.

    It streams word by word, with `delay_s` before each. With `picky` off it takes any history.
    """

    script: Sequence[Any]
    model_name: str = "model"
    delay_s: float = 0.0
    picky: bool = True
    asked: list[Asked] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, Any]:
        """Bind tools in the form of OpenAI; those that a provider has itself stay as they are."""
        bound = [t if isinstance(t, dict) else convert_to_openai_tool(t) for t in tools]
        return self.bind(tools=bound, **kwargs)

    def in_run(self, run_id: str) -> list[Asked]:
        """The calls that were made in a run, in order."""
        return [asked for asked in self.asked if asked.run_id == run_id]

    def _reply(self, messages: list[BaseMessage], options: dict[str, Any]) -> AIMessage:
        run = current.get()
        names = tuple(_name(tool) for tool in options.get("tools") or ())
        asked = Asked(tuple(messages), names, run.run_id if run else "")
        self.asked.append(asked)
        if self.picky:
            check(messages)
        line: Any = self.script[min(asked.turn, len(self.script) - 1)]
        while callable(line):
            line = line(asked)
        if isinstance(line, Exception):
            raise line
        return _sent(AIMessage(line) if isinstance(line, str) else line)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        time.sleep(self.delay_s)
        return _result(self._reply(messages, options))

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        await asyncio.sleep(self.delay_s)
        return _result(self._reply(messages, options))

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in _chunks(self._reply(messages, options)):
            time.sleep(self.delay_s)
            yield chunk

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in _chunks(self._reply(messages, options)):
            await asyncio.sleep(self.delay_s)
            yield chunk


def check(messages: Sequence[BaseMessage]) -> None:
    """Raise BrokenHistory for what providers answer with a 400."""
    if not any(not isinstance(message, SystemMessage) for message in messages):
        raise BrokenHistory("messages must not be empty")
    made: set[str] = set()
    open_calls: set[str] = set()
    for message in messages:
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in open_calls:
                raise BrokenHistory(f"a result without its call: {message.tool_call_id}")
            open_calls.remove(message.tool_call_id)
            continue
        if open_calls:
            raise BrokenHistory(f"calls without results: {open_calls}")
        for request in message.tool_calls if isinstance(message, AIMessage) else ():
            if str(request["id"]) in made:
                raise BrokenHistory(f"ids of calls must be unique: {request['id']}")
            made.add(str(request["id"]))
            open_calls.add(str(request["id"]))
    if open_calls:
        raise BrokenHistory(f"calls without results: {open_calls}")


def _is_reply(message: BaseMessage) -> bool:
    return isinstance(message, AIMessage)


def _name(tool: Any) -> str:
    return str(tool.get("function", tool).get("name", tool.get("type")))


def _sent(line: AIMessage) -> AIMessage:
    """The message as a provider sends it: with ids, a finish reason and its usage."""
    requests = [{**r, "id": r["id"] or f"call-{uuid.uuid4().hex[:12]}"} for r in line.tool_calls]
    reason = {"finish_reason": "tool_calls" if requests else "stop"}
    return line.model_copy(
        update={
            "id": None,
            "tool_calls": requests,
            "usage_metadata": line.usage_metadata or USAGE,
            "response_metadata": line.response_metadata or reason,
        }
    )


def _result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def _chunks(message: AIMessage) -> Iterator[ChatGenerationChunk]:
    parts: list[Any] = [[block] for block in message.content]
    if isinstance(message.content, str):
        parts = [f"{word} " for word in message.content.split(" ")] if message.content else []
        parts[-1:] = [part.removesuffix(" ") for part in parts[-1:]]
    for part in parts:
        yield ChatGenerationChunk(message=AIMessageChunk(content=part))
    requests = [
        {"name": r["name"], "args": json.dumps(r["args"]), "id": r["id"], "index": number}
        for number, r in enumerate(message.tool_calls)
    ]
    yield ChatGenerationChunk(
        message=AIMessageChunk(
            content="" if isinstance(message.content, str) else [],
            tool_call_chunks=requests,
            additional_kwargs=message.additional_kwargs,
            usage_metadata=message.usage_metadata,
            response_metadata=message.response_metadata,
        )
    )
