"""The far side, faked: models that follow a script, tools that misbehave, agents of each kind."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent
from langchain_classic.agents import AgentExecutor, create_tool_calling_agent
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool, tool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import Field

from app.runs.deadline import current
from tests.waiting import came_true

Script = Callable[[Sequence[BaseMessage]], AIMessage]
SYSTEM_PROMPT = "You are the order desk of a small shop."


class ScriptedModel(BaseChatModel):
    """A chat model whose reply is a function of the messages; `asked` keeps every call.

    `offered` keeps the names of the tools that came with each call.
    """

    script: Script
    delay_s: float = 0.0
    error: Exception | None = None
    asked: list[list[BaseMessage]] = Field(default_factory=list)
    offered: list[list[str]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, Any]:
        return self.bind(tools=[t.name if isinstance(t, BaseTool) else str(t) for t in tools])

    def _reply(self, messages: list[BaseMessage], given: dict[str, Any]) -> ChatResult:
        self.asked.append(list(messages))
        self.offered.append(list(given.get("tools") or []))
        if self.error is not None:
            raise self.error
        return ChatResult(generations=[ChatGeneration(message=self.script(messages))])

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **given: Any
    ) -> ChatResult:
        time.sleep(self.delay_s)
        return self._reply(messages, given)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **given: Any
    ) -> ChatResult:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        return self._reply(messages, given)

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **given: Any
    ) -> Iterator[ChatGenerationChunk]:
        yield from _chunks(self._generate(messages, **given))

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **given: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in _chunks(await self._agenerate(messages, **given)):
            yield chunk


def _chunks(result: ChatResult) -> Iterator[ChatGenerationChunk]:
    message = result.generations[0].message
    assert isinstance(message, AIMessage)
    calls = [
        {"name": c["name"], "args": json.dumps(c["args"]), "id": c["id"], "index": i}
        for i, c in enumerate(message.tool_calls)
    ]
    words = message.text.split(" ") if message.text else []
    for number, word in enumerate(words):
        text = word if number == len(words) - 1 else f"{word} "
        yield ChatGenerationChunk(message=AIMessageChunk(content=text, id=message.id))
    yield ChatGenerationChunk(
        message=AIMessageChunk(
            content="",
            tool_call_chunks=calls,
            usage_metadata=message.usage_metadata,
            response_metadata={"finish_reason": "tool_calls" if calls else "stop"},
        )
    )


def results_since_question(messages: Sequence[BaseMessage]) -> list[ToolMessage]:
    """The tool results of the present conversation turn."""
    last = max((i for i, m in enumerate(messages) if isinstance(m, HumanMessage)), default=-1)
    return [m for m in messages[last + 1 :] if isinstance(m, ToolMessage)]


def calls_then_answers(
    tool_name: str, arguments: dict[str, Any] | None = None, *, turns: int = 1, parallel: int = 1
) -> Script:
    """Ask for a tool in each of so many turns, then answer `done: <question>: <last result>`."""

    def script(messages: Sequence[BaseMessage]) -> AIMessage:
        results = results_since_question(messages)
        if len(results) < turns * parallel:
            return asks(tool_name, arguments or {}, number=len(results), parallel=parallel)
        question = next(m for m in reversed(messages) if isinstance(m, HumanMessage))
        last = results[-1].text if results else ""
        return AIMessage(f"done: {question.text}: {last}", usage_metadata=USAGE)

    return script


USAGE: Any = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


def asks(
    tool_name: str, arguments: dict[str, Any], *, number: int = 0, parallel: int = 1
) -> AIMessage:
    """A message in which the model asks for one tool, perhaps several times at once."""
    calls = [
        {"name": tool_name, "args": arguments, "id": f"call-{number + i}", "type": "tool_call"}
        for i in range(parallel)
    ]
    return AIMessage("", tool_calls=calls, usage_metadata=USAGE)


def never_stops(
    tool_name: str, arguments: dict[str, Any] | None = None, parallel: int = 1
) -> Script:
    """A model that always asks for the tool once more."""
    return lambda messages: asks(
        tool_name, arguments or {}, number=len(messages) * 10, parallel=parallel
    )


class ToolDesk:
    """A set of tools that misbehave in known ways, and what they saw.

    Those that take their time take `seconds`, or until they are released. `runs` has the run of
    each call that began.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.started: list[str] = []
        self.runs: list[str] = []
        self.finished: list[str] = []
        self.cancelled: list[str] = []
        self._held_ends: list[Callable[[], object]] = []
        self._times_released = 0

    def release(self) -> None:
        """End the calls that are open now, as if their time were over; on their event loop."""
        self._times_released += 1
        held, self._held_ends = self._held_ends, []
        for end in held:
            end()

    async def started_calls(self, count: int = 1, tool: str | None = None) -> list[str]:
        """The calls that started, of one tool or of all, once there are so many."""

        def started() -> list[str]:
            return [name for name in self.started if tool in (None, name)]

        await came_true(lambda: len(started()) >= count, f"{count} calls of {tool or 'tools'}")
        return started()

    async def finished_calls(self, count: int = 1, tool: str | None = None) -> list[str]:
        """The calls that finished, of one tool or of all, once there are so many."""

        def finished() -> list[str]:
            return [name for name in self.finished if tool in (None, name)]

        await came_true(lambda: len(finished()) >= count, f"{count} ends of {tool or 'tools'}")
        return finished()

    def _begin(self, name: str) -> None:
        run = current.get()
        self.runs.append(run.run_id if run else "")
        self.started.append(name)

    async def _hold(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        door = loop.create_future()

        def end() -> None:
            if not door.done():
                door.set_result(None)

        timer = loop.call_later(seconds, end)
        self._held_ends.append(end)
        try:
            await door
        finally:
            timer.cancel()
            if end in self._held_ends:
                self._held_ends.remove(end)

    def _block(self) -> None:
        door = threading.Event()
        self._held_ends.append(door.set)
        door.wait(self.seconds)

    def _is_released(self, before: int) -> bool:
        return self._times_released != before

    def tools(self) -> list[BaseTool]:
        """Named: look, nap, stubborn, block, hog, broken."""

        @tool
        async def look(order: str = "1") -> str:
            """Look an order up, at once."""
            self._begin("look")
            return f"order {order} shipped"

        @tool
        async def nap() -> str:
            """Sleep, and let oneself be cancelled."""
            self._begin("nap")
            try:
                await self._hold(self.seconds)
            except asyncio.CancelledError:
                self.cancelled.append("nap")
                raise
            self.finished.append("nap")
            return "slept"

        @tool
        async def stubborn() -> str:
            """Sleep, and swallow every cancellation."""
            self._begin("stubborn")
            end, before = time.monotonic() + self.seconds, self._times_released
            while (left := end - time.monotonic()) > 0 and not self._is_released(before):
                try:
                    await self._hold(left)
                except asyncio.CancelledError:
                    self.cancelled.append("stubborn")
            self.finished.append("stubborn")
            return "would not stop"

        @tool
        def block() -> str:
            """Sleep on a thread, where nothing can stop it."""
            self._begin("block")
            self._block()
            self.finished.append("block")
            return "blocked"

        @tool
        async def hog() -> str:
            """Hold the event loop itself."""
            self._begin("hog")
            end = time.monotonic() + self.seconds
            while time.monotonic() < end:
                pass
            return "held the loop"

        @tool
        async def broken() -> str:
            """Raise, with a secret in the exception."""
            self._begin("broken")
            raise ValueError("secret-in-exception")

        return [look, nap, stubborn, block, hog, broken]


KINDS = ("create_agent", "langgraph", "agent_executor")


def build(kind: str, model: BaseChatModel, tools: Sequence[BaseTool], **options: Any) -> Any:
    """An agent of one kind over a model and tools."""
    return {
        "create_agent": _create_agent,
        "langgraph": _langgraph,
        "agent_executor": _agent_executor,
    }[kind](model, list(tools), **options)


def _create_agent(model: BaseChatModel, tools: list[BaseTool], **options: Any) -> Any:
    return create_agent(model, tools, system_prompt=SYSTEM_PROMPT, **options)


class GraphState(TypedDict):
    """A state with messages only."""

    messages: Annotated[list[BaseMessage], add_messages]


def _langgraph(model: BaseChatModel, tools: list[BaseTool], **options: Any) -> Any:
    bound = model.bind_tools(tools) if tools else model

    async def think(state: GraphState) -> dict[str, Any]:
        messages = [SystemMessage(SYSTEM_PROMPT), *state["messages"]]
        return {"messages": [await bound.ainvoke(messages)]}

    graph = StateGraph(GraphState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", tools_condition, {"tools": "tools", END: END})
    graph.add_edge("tools", "think")
    return graph.compile(**options)


def _agent_executor(model: BaseChatModel, tools: list[BaseTool], **options: Any) -> Any:
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", SYSTEM_PROMPT),
            ("human", "{input}"),
            MessagesPlaceholder("agent_scratchpad"),
        ]
    )
    agent = create_tool_calling_agent(model, tools, prompt)
    return AgentExecutor(agent=agent, tools=tools, **options)
