"""A conversation that reached the limit continues from the answer that its caller got."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from app.agents.final_answer import fixed_sentence
from tests import fakes, loops
from tests.service import served

pytestmark = pytest.mark.waits

KINDS = ("create_agent", "langgraph")


def remembering(kind: str, model: fakes.ScriptedModel, tools: Sequence[Any]) -> Any:
    """An agent that keeps its conversations."""
    return fakes.build(kind, model, list(tools), checkpointer=InMemorySaver())


def turns_of(messages: Sequence[BaseMessage]) -> list[tuple[str, str]]:
    """The type and text of each message; every tool call is followed by its result."""
    open_calls: list[Any] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            open_calls.remove(message.tool_call_id)
            continue
        assert open_calls == [], f"dangling tool calls before {message!r}"
        if isinstance(message, AIMessage):
            open_calls = [call["id"] for call in message.tool_calls]
    assert open_calls == []
    spoken = (HumanMessage, AIMessage)
    return [(m.type, m.text) for m in messages if isinstance(m, spoken) and m.text]


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("stopping", ["generate", "force"])
@pytest.mark.parametrize("kind", KINDS)
async def test_answer_at_the_limit_is_in_the_thread(
    kind: str, stopping: str, parallel: int
) -> None:
    """The answer at the limit is the last message of the thread when its caller asks again."""
    model = loops.asks_times(kind, 2, parallel=parallel)
    agent = remembering(kind, model, fakes.ToolDesk().tools())
    async with served({"a": agent}, max_iterations=2, early_stopping=stopping) as service:
        first = (await service.ask("one", thread_id="t")).json()
        second = (await service.ask("two", thread_id="t")).json()
    answer = loops.ANSWER if stopping == "generate" else fixed_sentence(2)
    assert (first["outcome"], first["answer"]) == ("iteration_limit", answer)
    assert (second["outcome"], second["answer"]) == ("completed", loops.ANSWER)
    assert turns_of(model.asked[-1]) == [("human", "one"), ("ai", answer), ("human", "two")]


@pytest.mark.parametrize("kind", KINDS)
async def test_thread_stopped_in_a_tool_call_continues(kind: str) -> None:
    """A thread whose run was stopped in the middle of a tool call can continue, too."""
    inner = loops.asks_times("create_agent", math.inf)
    sub = fakes.build("create_agent", inner, fakes.ToolDesk().tools())

    @tool
    async def look(order: str = "1") -> str:
        """Ask somebody else."""
        return str((await sub.ainvoke({"messages": [("user", order)]}))["messages"][-1].text)

    model = loops.asks_times(kind, 1)
    async with served({"a": remembering(kind, model, [look])}, max_iterations=1) as service:
        first = (await service.ask("one", thread_id="t")).json()
        second = (await service.ask("two", thread_id="t")).json()
    assert (first["outcome"], second["outcome"]) == ("iteration_limit", "completed")
    turns = turns_of(model.asked[-1])
    assert turns == [("human", "one"), ("ai", loops.ANSWER), ("human", "two")]


@pytest.mark.parametrize("kind", KINDS)
async def test_threads_are_apart(kind: str) -> None:
    """Threads, and runs without one, see nothing of each other."""
    model = loops.asks_times(kind, 2)
    agent = remembering(kind, model, fakes.ToolDesk().tools())
    async with served({"a": agent}, max_iterations=2) as service:
        await service.ask("one", thread_id="t")
        await service.ask("two", thread_id="u")
        assert turns_of(model.asked[-1]) == [("human", "two")]
        await service.ask("three")
        await service.ask("four")
    assert turns_of(model.asked[-1]) == [("human", "four")]


async def test_earlier_turns_do_not_count() -> None:
    """Turns of earlier runs of a thread count neither as iterations nor as an answer."""
    model = loops.asks_times("create_agent", 1)
    agent = remembering("create_agent", model, fakes.ToolDesk().tools())
    async with served({"a": agent}, max_iterations=2) as service:
        first = (await service.ask("one", thread_id="t")).json()
        second = (await service.ask("two", thread_id="t")).json()
    assert [run["iterations"] for run in (first, second)] == [1, 0]
    assert [run["outcome"] for run in (first, second)] == ["completed", "completed"]
