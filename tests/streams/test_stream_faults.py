"""Faults of a real model server during a stream: retracted or reported, never half an answer."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from langchain_openai import ChatOpenAI

from app.runs.events import ModelCallStarted
from tests import fakes
from tests.service import served
from tests.streams.reading import names_of, of, stream, text_of
from tests.upstreams import llmock, set_scenario
from watchkeeper import build_agent

# Longer than a server that is well may take to go on, and shorter than one stalls.
READ_S = 2.0
ANSWER = "it is on its way to you and will be there within the week"
SAYS = {"type": "reply", "text": ANSWER}
FAULTS = ("stall", "truncate", "disconnect", "malformed")


def breaks(kind: str) -> dict[str, Any]:
    """A stream that breaks after some words."""
    stall = {"stall_seconds": 60} if kind == "stall" else {}
    return {"type": "stream_fault", "kind": kind, "after_chunks": 3, **stall}


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with llmock() as url:
        yield url


@asynccontextmanager
async def model(url: str, fault: str) -> AsyncIterator[ChatOpenAI]:
    """A model with a connection pool of its own; it does not stream by itself."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        yield ChatOpenAI(
            model="gpt-4.1-mini",
            base_url=url,
            api_key="not-a-secret",
            http_async_client=client,
            timeout=(30, READ_S if fault == "stall" else 30, 30, 30),
            max_retries=0,
        )


@pytest.mark.parametrize("fault", FAULTS)
async def test_text_of_a_broken_call_is_retracted(fault: str, upstream: str) -> None:
    """Text of a broken model call is retracted, and the next call gives the answer."""
    await set_scenario(upstream, {**SAYS, "times": 2}, breaks(fault))
    async with model(upstream, fault) as chat, served({"a": build_agent(chat, [])}) as desk:
        events = await stream(desk)
        assert len(desk.facts_of(ModelCallStarted)) == 2
        desk.books_balance()
    await set_scenario(upstream)
    names = names_of(events)
    assert names.count("retract") == 1
    assert "token" in names[1 : names.index("retract")]
    assert of(events, "retract") == [{"iteration": 1}]
    end = events[-1].data
    assert (end["outcome"], end["answer"], text_of(events)) == ("completed", ANSWER, ANSWER)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_broken_stream_without_retries_is_model_failed(
    kind: str, fault: str, upstream: str
) -> None:
    """Without retries a broken stream ends as model_failed."""
    await set_scenario(upstream, SAYS, breaks(fault))
    async with model(upstream, fault) as chat, served({"a": fakes.build(kind, chat, [])}) as desk:
        events = await stream(desk)
        desk.books_balance()
    await set_scenario(upstream)
    assert names_of(events)[-2:] == ["error", "end"]
    problem = events[-1].data
    assert (problem["status"], problem["code"]) == (500, "model_failed")
    assert (problem["retryable"], problem["outcome"]) == (True, "failed")
