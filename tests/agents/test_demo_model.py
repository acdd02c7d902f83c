"""The demo model replaces a real one, so it does what agents expect of any model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool

from app.agents.demo.language import LABEL
from app.agents.demo.model import DemoChatModel


@tool
def find(ticket_id: str) -> dict[str, str]:
    """Find a ticket."""
    return {"ticket_id": ticket_id, "opened_by": "Ada"}


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def weather(city: str) -> str:
    """Forecast the weather."""
    return f"Sunny in {city}."


@tool
def stock(item_id: int) -> str:
    """Count the stock of an item."""
    return str(item_id)


def calls(messages: Sequence[BaseMessage]) -> list[tuple[str, dict[str, Any]]]:
    replies = [message for message in messages if isinstance(message, AIMessage)]
    return [(call["name"], call["args"]) for reply in replies for call in reply.tool_calls]


async def test_streamed_calls_are_whole() -> None:
    """A streamed reply merges into the same tool calls, usage and metadata as a whole one."""
    bound = DemoChatModel().bind_tools([find])
    question = [HumanMessage("find ticket AB-12 and AB-13")]
    streamed: Any = None
    async for chunk in bound.astream(question):
        streamed = chunk if streamed is None else streamed + chunk
    whole = await bound.ainvoke(question)
    assert isinstance(streamed, AIMessageChunk)
    assert (
        calls([streamed])
        == calls([whole])
        == [
            ("find", {"ticket_id": "AB-12"}),
            ("find", {"ticket_id": "AB-13"}),
        ]
    )
    assert streamed.usage_metadata == whole.usage_metadata
    assert streamed.response_metadata == whole.response_metadata


def test_sync_calls_answer_alike() -> None:
    """Without an event loop the model answers the same, whole or streamed."""
    question = "Please refund my mug"
    bound = DemoChatModel().bind_tools([find])
    assert (
        "".join(str(chunk.text) for chunk in bound.stream(question)) == bound.invoke(question).text
    )


async def test_model_is_named_demo() -> None:
    """Traces and the model itself name it demo."""
    assert DemoChatModel().model_name == "demo"
    names: list[tuple[Any, Any]] = []
    async for event in DemoChatModel().astream_events("hello", version="v2"):
        metadata = event["metadata"]
        names.append((metadata["ls_provider"], metadata["ls_model_name"]))
    assert set(names) == {("demo", "demo")}


@pytest.mark.parametrize(
    ("question", "call"),
    [
        ("find ticket AB-12 from 2024", ("find", {"ticket_id": "AB-12"})),
        ("find ticket #7", ("find", {"ticket_id": "7"})),
        ("add 2 and 3", ("add", {"a": 2, "b": 3})),
        ("add 2 to itself", ("add", {"a": 2, "b": 2})),
        ("the weather in Paris?", ("weather", {"city": "Paris"})),
        ("stock of item 12", ("stock", {"item_id": 12})),
    ],
)
async def test_arguments_follow_the_schema(question: str, call: tuple[str, dict[str, Any]]) -> None:
    """The model fills the required arguments of any tool from its schema."""
    reply = await DemoChatModel().bind_tools([find, add, weather, stock]).ainvoke(question)
    assert calls([reply]) == [call]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (
            ToolMessage('{"ticket_id": "7", "by": "Ada"}', tool_call_id="1"),
            "Ticket id: 7; by: Ada.",
        ),
        (ToolMessage("Sunny.", tool_call_id="1"), "Sunny."),
        (ToolMessage("[1, 2]", tool_call_id="1"), "[1, 2]"),
        (ToolMessage("", tool_call_id="1", name="find"), "The tool find returned nothing."),
        (
            ToolMessage("no route", tool_call_id="1", name="find", status="error"),
            "The tool find failed: no route",
        ),
    ],
)
async def test_results_are_repeated(result: ToolMessage, expected: str) -> None:
    """A result without a summary is repeated as it came, and a failure is reported as one."""
    messages = [SystemMessage("Be kind."), HumanMessage("find it"), AIMessage(""), result]
    assert (await DemoChatModel().ainvoke(messages)).text == f"{LABEL} {expected}"


async def test_spaces_survive_streaming() -> None:
    """Streaming keeps every space of the answer, a trailing one too."""
    result = ToolMessage('{"summary": "两 个  tickets,\\nboth open "}', tool_call_id="1")
    messages = [HumanMessage("find it"), result]
    pieces = [str(chunk.text) async for chunk in DemoChatModel().astream(messages)]
    assert "".join(pieces) == f"{LABEL} 两 个  tickets,\nboth open "


async def test_model_without_tools_says_so() -> None:
    """A model without tools answers that it has none."""
    assert "gave me no tools" in (await DemoChatModel().ainvoke("Where is order 10023?")).text


@pytest.mark.waits
async def test_delays_are_kept() -> None:
    """The model keeps its delays, whether or not the answer streams."""
    model = DemoChatModel(first_token_delay_s=0.03, token_delay_s=0.001)
    started = time.perf_counter()
    async for _ in model.astream("hello"):
        assert time.perf_counter() - started >= 0.029
        break
    started = time.perf_counter()
    await model.ainvoke("hello")
    assert time.perf_counter() - started >= 0.035


@pytest.mark.parametrize("hostile", ["“" * 60_000, "9" * 60_000, " " * 60_000, "订" * 60_000])
async def test_hostile_question_takes_linear_time(hostile: str) -> None:
    """A long hostile question takes no longer than its length explains."""
    bound = DemoChatModel().bind_tools([find, add, weather, stock])
    started = time.perf_counter()
    for verb in ("find ticket", "add", "weather", "stock of item"):
        await bound.ainvoke(f"{verb} {hostile}")
    assert time.perf_counter() - started < 20
