"""A thread_id continues a conversation, in memory if the agent stores none itself."""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_classic.agents import AgentExecutor, create_tool_calling_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder

from app.agents.conversations import MOST_BYTES, Conversations, InMemoryThreads
from app.runs.model import AgentAnswer
from tests import fakes
from tests.service import served

pytestmark = pytest.mark.waits

KINDS = ("create_agent", "langgraph", "with_history")


def build(kind: str, model: fakes.ScriptedModel) -> Any:
    tools = fakes.ToolDesk().tools()
    if kind != "with_history":
        return fakes.build(kind, model, tools)
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", fakes.SYSTEM_PROMPT),
            MessagesPlaceholder("chat_history", optional=True),
            ("human", "{input}"),
            MessagesPlaceholder("agent_scratchpad"),
        ]
    )
    return AgentExecutor(agent=create_tool_calling_agent(model, tools, prompt), tools=tools)


def spoken(model: fakes.ScriptedModel) -> list[str]:
    """The messages of people and of the model that the last model call got."""
    return [m.text for m in model.asked[-1] if isinstance(m, HumanMessage | AIMessage) and m.text]


@pytest.mark.parametrize("kind", KINDS)
async def test_thread_continues(kind: str) -> None:
    """The second question of a thread comes with the first one and its answer."""
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("look", {"order": "7"}))
    async with served({"a": build(kind, model)}) as service:
        for question in ("one", "two"):
            response = await service.ask(question, thread_id="t")
            assert response.json()["answer"] == f"done: {question}: order 7 shipped"
            assert response.json()["iterations"] == 1
    assert spoken(model) == ["one", "done: one: order 7 shipped", "two"]


@pytest.mark.parametrize("kind", KINDS)
async def test_threads_are_apart(kind: str) -> None:
    """Neither another thread nor a run without one sees the messages of a thread."""
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("look", turns=0))
    async with served({"a": build(kind, model), "b": build(kind, model)}) as service:
        await service.ask("one", thread_id="t")
        for agent, thread in (("a", {"thread_id": "u"}), ("a", {}), ("b", {"thread_id": "t"})):
            await service.ask("two", agent=agent, **thread)
            assert spoken(model) == ["two"]


@pytest.mark.parametrize("kind", KINDS)
async def test_answer_at_the_limit_belongs_to_the_thread(kind: str) -> None:
    """The answer at the limit belongs to the thread, which has no open tool call."""
    model = fakes.ScriptedModel(script=fakes.never_stops("look"))
    async with served({"a": build(kind, model)}, early_stopping="force") as service:
        for question in ("one", "two"):
            response = await service.ask(question, thread_id="t", max_iterations=1)
            assert response.json()["outcome"] == "iteration_limit"
    assert spoken(model) == ["one", "No answer was found within the limit of 1 iteration.", "two"]


@pytest.mark.parametrize("kind", KINDS)
async def test_failed_run_leaves_the_thread_unchanged(kind: str) -> None:
    """Messages of a run without an answer are not part of the conversation."""
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("look", turns=0))
    async with served({"a": build(kind, model)}) as service:
        await service.ask("one", thread_id="t")
        model.error = ConnectionError()
        assert (await service.ask("lost", thread_id="t")).status_code == 500
        model.error = None
        await service.ask("two", thread_id="t")
    assert spoken(model) == ["one", "done: one: ", "two"]


async def test_executor_without_chat_history_has_no_conversations() -> None:
    """An executor whose prompt takes no chat_history cannot continue a conversation."""
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("look", turns=0))
    agent = fakes.build("agent_executor", model, fakes.ToolDesk().tools())
    async with served({"a": agent}) as service:
        problem = await service.ask("one", thread_id="t")
    assert (problem.status_code, problem.json()["code"]) == (422, "invalid_request")
    assert problem.json()["errors"][0]["field"] == "thread_id"


def run(thread_id: str) -> Any:
    """The call of a run on a thread."""
    return SimpleNamespace(
        run_id="r", thread_id=thread_id, fence=None, answered=lambda answer, writing: None
    )


async def stored(messages: Sequence[BaseMessage]) -> tuple[list[BaseMessage], int]:
    """What a thread has of these messages, the last of which is the answer, and its bytes."""
    threads = InMemoryThreads()
    conversations = Conversations("a", threads)
    await conversations.store(run("t"), AgentAnswer(str(messages[-1].text)), messages)
    text = await threads.read("a", "t")
    return await conversations.history("t"), len((text or "").encode())


async def test_stored_conversations_are_bounded() -> None:
    """The oldest of many threads are evicted, and the oldest questions of a long one."""
    conversations = Conversations("a", InMemoryThreads())
    for number in range(1_100):
        exchange = [HumanMessage("q"), AIMessage("a")]
        await conversations.store(run(f"t{number}"), AgentAnswer("a"), exchange)
    assert (await conversations.history("t99"), len(await conversations.history("t100"))) == ([], 2)
    long = [m for n in range(80) for m in (HumanMessage(f"q{n}"), AIMessage(f"a{n}"))]
    messages, _ = await stored(long)
    assert [m.text for m in messages[:2]] == ["q30", "a30"]


@pytest.mark.parametrize("character", ["a", "é", "😀"])
async def test_stored_conversations_are_bounded_in_bytes(character: str) -> None:
    """Of a conversation with long texts the newest questions are left, each with its answer."""
    text = character * 20_000
    long: list[BaseMessage] = [
        m for n in range(50) for m in (HumanMessage(f"q{n}"), AIMessage(f"{n} {text}"))
    ]
    messages, size = await stored(long)
    assert size <= MOST_BYTES < size + 2 * len(json.dumps(text))
    assert messages[-1].text == f"49 {text}"
    assert [m.type for m in messages[:2]] == ["human", "ai"]


@pytest.mark.parametrize("character", ["a", "é", "😀"])
@pytest.mark.parametrize("answer", [10, 3_000_000])
async def test_turn_beyond_the_bound_keeps_question_and_answer(character: str, answer: int) -> None:
    """Of a turn that is larger than the bound the question and the answer are left, cut if long."""
    calls = fakes.asks("look", {})
    result = ToolMessage(character * 2_000_000, tool_call_id=calls.tool_calls[0]["id"])
    last = AIMessage(character * answer)
    turn = [HumanMessage("q", id="q"), calls, result, last]
    messages, size = await stored([HumanMessage("old"), AIMessage("old"), *turn])
    assert size <= MOST_BYTES
    assert [(m.type, m.id) for m in messages] == [("human", "q"), ("ai", None)]
    text = str(messages[1].text)
    assert text == last.text or (text[-1] == "…" and str(last.text).startswith(text[:-1]))
    assert (text == last.text) is (answer == 10)
