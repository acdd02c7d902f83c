"""Agents of our builder: their limits, and how they ask a model over the wire."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.agents.builder import build_agent
from app.agents.openai import chat_openai
from app.runs.events import ModelCallStarted
from tests import fakes, loops
from tests.service import served
from tests.upstreams import llmock, set_scenario

pytestmark = pytest.mark.waits

SAYS = {"type": "reply", "text": loops.ANSWER, "times": None}


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with llmock() as url:
        yield url


@pytest.fixture(autouse=True)
def environment(upstream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compatible endpoint, as an operator names it."""
    monkeypatch.setenv("OPENAI_BASE_URL", upstream)
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-secret")


async def requests(upstream: str) -> list[dict[str, Any]]:
    """What the model server was sent."""
    control = httpx.URL(upstream).join("/_llmock/requests")
    async with httpx.AsyncClient(trust_env=False) as client:
        sent: list[dict[str, Any]] = (await client.get(control)).json()["requests"]
    return sent


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one(limit: int) -> None:
    """A limit below one is refused when the agent is built."""
    with pytest.raises(ValueError, match="max_iterations must be at least 1"):
        build_agent(loops.asks_times("create_agent", 0), [], max_iterations=limit)


def test_early_stopping_that_is_none() -> None:
    """Early stopping that does not exist is refused when the agent is built."""
    with pytest.raises(ValueError, match="perhaps"):
        build_agent(loops.asks_times("create_agent", 0), [], early_stopping="perhaps")


async def test_limits() -> None:
    """An agent carries its own limits to the service that serves it."""
    model = loops.asks_times("create_agent", 5)
    agent = build_agent(
        model, fakes.ToolDesk().tools(), "Be brief.", max_iterations=2, early_stopping="force"
    )
    async with served({"a": agent}) as service:
        [shown] = (await service.client.get("/agents")).json()["agents"]
        body = (await service.ask()).json()
    assert (shown["kind"], shown["iteration_limit"], shown["early_stopping"]) == (
        "create_agent",
        2,
        "force",
    )
    assert (body["outcome"], body["iterations"], len(model.asked)) == ("iteration_limit", 2, 2)
    assert model.asked[0][0].text == "Be brief."


@pytest.mark.parametrize("streaming", [True, False])
async def test_by_name(streaming: bool, upstream: str) -> None:
    """An agent over a model that is named only looks up, answers and reports what it spent."""
    await set_scenario(upstream)
    desk = fakes.ToolDesk()
    model = chat_openai("gpt-4.1-mini", streaming=streaming) if streaming else "openai:gpt-4.1-mini"
    async with served({"a": build_agent(model, desk.tools())}) as service:
        response = await service.ask("look an order up")
        [shown] = (await service.client.get("/agents")).json()["agents"]
    body = response.json()
    assert response.status_code == 200, response.text
    assert (body["outcome"], body["iterations"]) == ("completed", 1)
    assert body["usage"]["input_tokens"] > 0
    assert body["usage"]["output_tokens"] > 0
    assert shown["model"] == "gpt-4.1-mini"
    sent = await requests(upstream)
    assert [request["model"] for request in sent] == ["gpt-4.1-mini"] * 2


@pytest.mark.parametrize("name", ["gpt-4.1-mini", "gpt-5-pro", "o3-pro", "gpt-5-codex"])
async def test_compatible_endpoints(name: str, upstream: str) -> None:
    """A compatible endpoint is asked for chat completions, whatever the model is called."""
    await set_scenario(upstream, SAYS)
    model = chat_openai(name, streaming=True)
    async with served({"a": build_agent(model, [])}) as service:
        body = (await service.ask()).json()
    assert body["answer"] == loops.ANSWER
    assert [request["path"] for request in await requests(upstream)] == ["/v1/chat/completions"]


def test_without_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no endpoint is named, which API of OpenAI is used stays the client's choice."""
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert chat_openai("gpt-4.1-mini").use_responses_api is None


def closed(model: Any) -> bool:
    """Whether the connections of a model are closed."""
    return bool(model.http_async_client.is_closed)


async def test_one_client_for_the_process(upstream: str) -> None:
    """All models share one pool of connections, which is closed with the service."""
    await set_scenario(upstream, SAYS)
    first, second = (chat_openai(name, streaming=True) for name in ("gpt-4.1-mini", "gpt-4.1"))
    agents = {"a": build_agent(first, []), "b": build_agent(second, [])}
    assert first.http_async_client is second.http_async_client
    async with served(agents) as service:
        for name in agents:
            assert (await service.ask(agent=name)).status_code == 200
        assert not closed(first)
    assert closed(first)
    assert not closed(chat_openai("gpt-4.1-mini"))


async def test_after_a_service_has_ended(upstream: str) -> None:
    """A model that is made after a service ended has open connections, not the closed ones."""
    for _ in range(2):
        await set_scenario(upstream, SAYS)
        agent = build_agent(chat_openai("gpt-4.1-mini", streaming=True), [])
        async with served({"a": agent}) as service:
            assert (await service.ask()).json()["answer"] == loops.ANSWER


def test_timeouts() -> None:
    """No read from a model waits for ever, and the client's own retries are off."""
    model = chat_openai("gpt-4.1-mini")
    timeout = model.root_async_client.timeout
    assert tuple(timeout) == (5.0, 60.0, 30.0, 5.0)
    assert model.root_async_client.max_retries == 0


def test_options() -> None:
    """What a caller of the builder's model says counts for more than its defaults."""
    model = chat_openai("gpt-4.1-mini", timeout=3.0, base_url="http://127.0.0.1:9/v1")
    assert model.request_timeout == 3.0
    assert str(model.root_async_client.base_url) == "http://127.0.0.1:9/v1/"


async def test_one_request_for_each_attempt(upstream: str) -> None:
    """An attempt is one request: nothing is tried again behind the agent's back."""
    await set_scenario(upstream, {"type": "fail", "status": 500}, SAYS)
    async with served({"a": build_agent(chat_openai("m", streaming=True), [])}) as service:
        body = (await service.ask()).json()
        assert len(service.facts_of(ModelCallStarted)) == 2
    assert body["outcome"] == "completed"
    assert [request["status"] for request in await requests(upstream)] == [500, 200]


async def test_the_deadline(upstream: str) -> None:
    """A model that is silent is left at the run's deadline, long before its own timeout."""
    await set_scenario(upstream, {"type": "delay", "seconds": 60})
    async with served({"a": build_agent(chat_openai("m"), [])}) as service:
        asking = asyncio.ensure_future(service.ask())
        await service.times_out("a", "llm")
        response = await asking
    assert (response.status_code, response.json()["phase"]) == (504, "llm")
