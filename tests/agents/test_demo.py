"""The demo agent is a newcomer's first contact, so its answers are checked to the word."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    AnyMessage,
    HumanMessage,
    ToolMessage,
)
from langgraph.graph.state import CompiledStateGraph

from app.agents.demo.agent import build
from app.agents.demo.language import LABEL, LABEL_ZH
from app.agents.demo.plan import MOST_CALLS

Agent = CompiledStateGraph[Any, Any, Any, Any]


@pytest.fixture(scope="module")
def agent() -> Agent:
    return build()


async def ask(agent: Agent, question: str) -> list[AnyMessage]:
    state = await agent.ainvoke({"messages": [HumanMessage(question)]})
    messages: list[AnyMessage] = state["messages"]
    return messages


async def answer(agent: Agent, question: str) -> str:
    return str((await ask(agent, question))[-1].text)


def calls(messages: Sequence[AnyMessage]) -> list[tuple[str, dict[str, Any]]]:
    replies = [message for message in messages if isinstance(message, AIMessage)]
    return [(call["name"], call["args"]) for reply in replies for call in reply.tool_calls]


@pytest.mark.parametrize(
    ("question", "facts"),
    [
        ("Where is order 10023?", ["Order 10023 is shipped", "2 × Blue mug", "2026-12-02"]),
        ("Has order 10028 been delivered or cancelled?", ["Order 10028 is cancelled"]),
        ("any news of #10025?", ["Order 10025 is packed", "1 × Walnut tray, 1 × Tea towel"]),
        ("10029", ["Order 10029 is delivered", "2026-11-17"]),
        ("Track the parcel of order 10032", ["parcel HP-310132", "Harbour Post", "Porto"]),
        ("Where is the package of 10026?", ["Order 10026 is pending", "no parcel"]),
        ("Which orders are shipped?", ["3 orders are shipped", "10023", "10024 (王芳)", "10032"]),
        ("List all cancelled orders", ["1 order is cancelled: 10028 (Noah Martin)"]),
        ("What is your refund policy?", ["within 30 days"]),
        ("Can I get a refund for order 10023?", ["within 30 days"]),
        ("Is shipping free?", ["free from 50 euros"]),
    ],
)
async def test_answers_have_the_facts(agent: Agent, question: str, facts: list[str]) -> None:
    """A question about the shop is answered with the facts, below the demo label."""
    text = await answer(agent, question)
    assert text.startswith(LABEL)
    assert [fact for fact in facts if fact not in text] == []


@pytest.mark.parametrize(
    ("question", "facts"),
    [
        ("订单10023到哪了？", ["订单 10023 已发货", "预计 2026-12-02 送达"]),
        ("订单１００２４怎么样了", ["订单 10024 已发货", "青花瓷杯"]),
        ("有哪些订单还没付款？", ["待付款的订单有 2 个", "李伟"]),
        ("退款政策是什么？", ["30 天内可以退货"]),
        ("快递到哪里了 10024", ["SF-880124", "杭州"]),
        ("我的订单到哪了？", ["请告诉我订单号，例如 10023"]),
        ("列出所有订单", ["请告诉我状态：待付款、已打包"]),
        ("订单99999到哪了？", ["没有这个订单：99999"]),
        ("今天天气怎么样？", ["我答不了", "query_order、track_parcel、store_policy、list_orders"]),
    ],
)
async def test_chinese_question_gets_a_chinese_answer(
    agent: Agent, question: str, facts: list[str]
) -> None:
    """A Chinese question gets a Chinese answer, below a Chinese label."""
    text = await answer(agent, question)
    assert text.startswith(LABEL_ZH)
    assert [fact for fact in facts if fact not in text] == []


async def test_unknown_order_is_an_answer(agent: Agent) -> None:
    """An unknown order is an answer of the tool, not a failure of it."""
    messages = await ask(agent, "Where is order 99999?")
    [result] = [message for message in messages if isinstance(message, ToolMessage)]
    assert result.status == "success"
    assert messages[-1].text == f"{LABEL} There is no such order: 99999."


async def test_parallel_calls(agent: Agent) -> None:
    """Several ids in one question become parallel calls of one model reply."""
    messages = await ask(agent, "Where are orders 10023, 10021 and again 10023?")
    first = messages[1]
    assert isinstance(first, AIMessage)
    assert [call["args"] for call in first.tool_calls] == [
        {"order_id": "10023"},
        {"order_id": "10021"},
    ]
    assert len({call["id"] for call in first.tool_calls}) == 2
    assert "Order 10023 is shipped" in messages[-1].text
    assert "Order 10021 is delivered" in messages[-1].text


async def test_too_many_ids_are_refused(agent: Agent) -> None:
    """A question with too many ids is sent back and calls nothing."""
    ids = " ".join(str(10000 + n) for n in range(MOST_CALLS + 1))
    messages = await ask(agent, f"Where are orders {ids}?")
    assert calls(messages) == []
    assert f"at most {MOST_CALLS}" in messages[-1].text


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Where is my order?", "Please tell me the order id, for example 10023."),
        ("Where is order 7?", "for example 10023; 7 does not look like one."),
        ("Where is order AB-1234?", "for example 10023; AB-1234 does not look like one."),
        ("I want to order 3 apples", "for example 10023; 3 does not look like one."),
        ("I paid $10000 for my order", "Please tell me the order id, for example 10023."),
        ("Which orders did you get in 2024?", "Please tell me the state: pending, packed"),
        ("What's your policy?", "Please tell me the topic: refunds, delivery"),
    ],
)
async def test_asks_for_what_is_missing(agent: Agent, question: str, expected: str) -> None:
    """Without a usable argument the model asks for it and calls nothing."""
    messages = await ask(agent, question)
    assert calls(messages) == []
    assert expected in messages[-1].text


@pytest.mark.parametrize("question", ["Can I buy 3 apples?", "Will it rain in 2027?", "hi", ""])
async def test_question_without_a_tool_names_the_tools(agent: Agent, question: str) -> None:
    """A question that no tool fits is answered with the names of the tools."""
    messages = await ask(agent, question)
    assert calls(messages) == []
    assert messages[-1].text == (
        f"{LABEL} I cannot answer that. I can only match your words with this agent's tools: "
        "query_order, track_parcel, store_policy, list_orders."
    )


async def test_other_numbers_are_not_looked_up(agent: Agent) -> None:
    """A quantity, a year or a date beside an id is not looked up."""
    messages = await ask(agent, "In 2026, on 2026-11-01, I got 3 mugs: where is order 10023?")
    assert calls(messages) == [("query_order", {"order_id": "10023"})]


@pytest.mark.parametrize("question", ["Where is order 10023?", "订单10024到哪了？", "hello"])
async def test_streamed_tokens_add_up(agent: Agent, question: str) -> None:
    """The streamed tokens add up to the whole answer."""
    pieces: list[str] = []
    stream = agent.astream({"messages": [HumanMessage(question)]}, stream_mode="messages")
    async for message, _ in stream:
        if isinstance(message, AIMessageChunk):
            pieces.append(str(message.text))
    assert "".join(pieces) == await answer(agent, question)
    assert len([piece for piece in pieces if piece]) > 5


async def test_reply_has_usage_reason_and_label(agent: Agent) -> None:
    """Every reply reports its usage, its finish reason, and that it comes from a demo."""
    messages = await ask(agent, "Where is order 10023?")
    replies = [message for message in messages if isinstance(message, AIMessage)]
    reasons = [reply.response_metadata["finish_reason"] for reply in replies]
    assert reasons == ["tool_calls", "stop"]
    for reply in replies:
        assert reply.response_metadata["demo"] is True
        assert reply.response_metadata["model_name"] == "demo"
        usage = reply.usage_metadata
        assert usage is not None
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        assert min(usage["input_tokens"], usage["output_tokens"]) > 0


async def test_concurrent_runs(agent: Agent) -> None:
    """Fifty runs of one agent at once each get the answer to their own question."""
    ids = [str(10021 + n) for n in range(12)] + [str(70000 + n) for n in range(38)]
    answers = await asyncio.gather(*(answer(agent, f"Where is order {id_}?") for id_ in ids))
    alone = [await answer(agent, f"Where is order {id_}?") for id_ in ids]
    assert answers == alone
    assert all(id_ in text for id_, text in zip(ids, answers, strict=True))
    assert len(set(answers)) == 50


async def test_earlier_turns_change_nothing(agent: Agent) -> None:
    """Messages before the last human one change nothing."""
    earlier = await ask(agent, "Where is order 10023?")
    state = await agent.ainvoke({"messages": [*earlier, HumanMessage("Where is order 10028?")]})
    new = state["messages"][len(earlier) :]
    assert calls(new) == [("query_order", {"order_id": "10028"})]
    assert new[-1].text == await answer(agent, "Where is order 10028?")
    assert "10023" not in new[-1].text


@pytest.mark.waits
def test_importing_reads_nothing() -> None:
    """Importing the demo opens no data file; build() does."""
    code = (
        "import sys; opened = []\n"
        "sys.addaudithook(lambda e, a: opened.append(str(a[0])) if e == 'open' else None)\n"
        "import app.agents.demo.agent\n"
        "assert not [name for name in opened if name.endswith('.json')], opened\n"
        "app.agents.demo.agent.build()\n"
        "assert [name for name in opened if name.endswith('demo/orders.json')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
