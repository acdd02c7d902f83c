"""Faults of a real model server, through the real client: each has its code and runs no tool."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from langchain_openai import ChatOpenAI

from app.runs.events import ModelCallStarted, ToolCallRejected, ToolCallStarted
from tests import fakes, loops
from tests.service import Served, served
from tests.upstreams import llmock, set_scenario

pytestmark = pytest.mark.waits

Behaviors = list[dict[str, Any]]
READ_S = 0.25
# Of a server that leaves its client waiting: no pause of the machine makes it look in time.
STALLED_S = 60.0
ORDER = "order-10023-and-a-few-more-words"
CALL = {"name": "look", "arguments": {"order": ORDER}}
ASKS = {"type": "reply", "tool_calls": [CALL]}
SAYS = {"type": "reply", "text": "Final Answer: it is on its way to you"}
# Chunks: the role, the tool's name, then twelve characters of its arguments in each.
MID_ARGUMENTS = 4


def breaks(kind: str, after_chunks: int) -> dict[str, Any]:
    """A stream that breaks after so many chunks."""
    stall = {"stall_seconds": STALLED_S} if kind == "stall" else {}
    return {"type": "stream_fault", "kind": kind, "after_chunks": after_chunks, **stall}


STREAM_FAULTS = ("stall", "truncate", "disconnect", "malformed")
# What a server can do to a stream, in a tool call and in an answer.
STREAMED: dict[str, Behaviors] = {
    **{f"{kind} in a call": [ASKS, breaks(kind, MID_ARGUMENTS)] for kind in STREAM_FAULTS},
    **{f"{kind} in an answer": [SAYS, breaks(kind, 3)] for kind in STREAM_FAULTS},
    **{f"{kind} at once": [SAYS, breaks(kind, 0)] for kind in ("truncate", "disconnect")},
    "a slow first token": [SAYS, {"type": "slow_first_token", "seconds": STALLED_S}],
}
# What a server can do either way.
EITHER_WAY: dict[str, Behaviors] = {
    "429": [{"type": "fail", "status": 429}],
    "429 with Retry-After": [{"type": "fail", "status": 429, "retry_after": 60}],
    "500": [{"type": "fail", "status": 500}],
    "503": [{"type": "fail", "status": 503, "retry_after": 60}],
    "401": [{"type": "fail", "status": 401}],
    "malformed arguments": [ASKS, {"type": "tool_fault", "kind": "malformed_arguments"}],
    "cut call": [
        {**ASKS, "finish_reason": "length"},
        {"type": "tool_fault", "kind": "malformed_arguments"},
    ],
    "cut at a whole call": [{**ASKS, "finish_reason": "length"}],
    "cut answer": [{**SAYS, "finish_reason": "length"}],
    "a late answer": [SAYS, {"type": "delay", "seconds": STALLED_S}],
}
WITH_TOOLS = ("call", "arguments")


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with llmock() as url:
        yield url


@asynccontextmanager
async def model(url: str, **options: Any) -> AsyncIterator[ChatOpenAI]:
    """The model as users make it, with a connection pool of its own."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        yield ChatOpenAI(
            model="gpt-4.1-mini",
            base_url=url,
            api_key="not-a-secret",
            http_async_client=client,
            **{"timeout": (1, READ_S, 1, 1), "max_retries": 0, **options},
        )


def agent_of(kind: str, chat: ChatOpenAI, tools: Any) -> Any:
    """An agent that streams where its model does."""
    if kind in ("agent_executor", "react"):
        return loops.build(kind, chat, tools, stream_runnable=chat.streaming)
    return loops.build(kind, chat, tools)


async def failure(service: Served, desk: fakes.ToolDesk) -> str:
    """Why a run did not end as the failure of its model; empty if it did."""
    service.facts.clear()
    desk.started.clear()
    response = await service.ask(timeout=10.0)
    body = response.json()
    if desk.started or service.facts_of(ToolCallStarted):
        return "a tool ran"
    if response.status_code != 500 or (body["code"], body["retryable"]) != ("model_failed", True):
        return f"{response.status_code} {response.text}"
    return "" if len(service.facts_of(ModelCallStarted)) == 1 else "asked again"


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", loops.ALL)
async def test_every_fault_is_model_failed(kind: str, streaming: bool, upstream: str) -> None:
    """In an agent that users built, every fault is model_failed and runs no tool."""
    desk = fakes.ToolDesk()
    faults: Mapping[str, Behaviors] = {**EITHER_WAY, **(STREAMED if streaming else {})}
    wrong = {}
    async with (
        model(upstream, streaming=streaming) as chat,
        served({"a": agent_of(kind, chat, desk.tools())}) as service,
    ):
        for name, behaviors in faults.items():
            if kind == "react" and any(word in name for word in WITH_TOOLS):
                continue  # it sends no tools, so its model calls none
            await set_scenario(upstream, *behaviors)
            if why := await failure(service, desk):
                wrong[name] = why
        await set_scenario(upstream)
        service.books_balance()
    assert wrong == {}


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_whole_answer_passes(kind: str, streaming: bool, upstream: str) -> None:
    """Without a fault the same server's answer passes in full."""
    desk = fakes.ToolDesk()
    whole: Behaviors = [ASKS, {**SAYS, "text": "it is on its way"}]
    async with (
        model(upstream, streaming=streaming, timeout=10) as chat,
        served({"a": agent_of(kind, chat, desk.tools())}) as service,
    ):
        for behaviors in (whole, [*whole, {"type": "delay", "seconds": READ_S / 2}]):
            await set_scenario(upstream, *behaviors)
            body = (await service.ask(include_steps=True)).json()
            assert (body["outcome"], body["answer"]) == ("completed", "it is on its way")
            assert [step["arguments"] for step in body["steps"]] == [{"order": ORDER}]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_unknown_tool_is_rejected(kind: str, streaming: bool, upstream: str) -> None:
    """A model that calls a tool it was never offered reads an error, and the run goes on."""
    desk = fakes.ToolDesk()
    await set_scenario(upstream, {"type": "tool_fault", "kind": "unknown_tool"})
    async with (
        model(upstream, streaming=streaming, timeout=30) as chat,
        served({"a": agent_of(kind, chat, desk.tools())}) as service,
    ):
        response = await service.ask()
        body = response.json()
        assert (response.status_code, body["outcome"]) == (200, "completed")
        assert (body["iterations"], body["tool_calls"], desk.started) == (1, 0, [])
        assert [fact.reason for fact in service.facts_of(ToolCallRejected)] == ["unknown_tool"]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", loops.ALL)
async def test_stall_without_a_client_timeout_is_a_timeout(
    kind: str, streaming: bool, upstream: str
) -> None:
    """A silent model, asked by a client without a timeout, is a timeout of the run."""
    fault = breaks("stall", 2) if streaming else {"type": "delay", "seconds": STALLED_S}
    await set_scenario(upstream, SAYS, fault)
    async with (
        model(upstream, streaming=streaming, timeout=None) as chat,
        served({"a": agent_of(kind, chat, fakes.ToolDesk().tools())}) as service,
    ):
        asking = asyncio.ensure_future(service.ask())
        await service.times_out("a", "llm")
        response = await asking
    assert (response.status_code, response.json()["phase"]) == (504, "llm")


async def test_client_retries_are_one_model_call(upstream: str) -> None:
    """Retries of a user's own client are attempts within one model call."""
    fails = {"type": "fail", "status": 503, "times": 2}
    await set_scenario(upstream, fails, SAYS)
    async with (
        model(upstream, max_retries=2, timeout=30) as chat,
        served({"a": agent_of("create_agent", chat, [])}) as service,
    ):
        body = (await service.ask()).json()
        assert body["outcome"] == "completed"
        assert len(service.facts_of(ModelCallStarted)) == 1


async def test_deadline_stops_a_waiting_client(upstream: str) -> None:
    """The run's deadline stops a client that waits as long as Retry-After says."""
    await set_scenario(upstream, {"type": "fail", "status": 429, "retry_after": 60, "times": None})
    async with (
        model(upstream, max_retries=2, timeout=30) as chat,
        served({"a": agent_of("create_agent", chat, [])}) as service,
    ):
        asking = asyncio.ensure_future(service.ask())
        await service.times_out("a", "llm")
        response = await asking
    await set_scenario(upstream)
    assert (response.status_code, response.json()["phase"]) == (504, "llm")
