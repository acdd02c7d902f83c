"""Agents of our builder: their limits, and their requests to a model."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.agents.builder import build_agent
from app.agents.models.openai import chat_openai
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
def test_limit_below_one_is_refused(limit: int) -> None:
    """A limit below one is refused when the agent is built."""
    with pytest.raises(ValueError, match="max_iterations must be at least 1"):
        build_agent(loops.asks_times("create_agent", 0), [], max_iterations=limit)


def test_unknown_early_stopping_is_refused() -> None:
    """Unknown early stopping is refused when the agent is built."""
    with pytest.raises(ValueError, match="perhaps"):
        build_agent(loops.asks_times("create_agent", 0), [], early_stopping="perhaps")


async def test_service_uses_the_limits_of_the_agent() -> None:
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
async def test_model_by_name_answers(streaming: bool, upstream: str) -> None:
    """An agent with a model given by name looks up, answers and reports its usage."""
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
async def test_compatible_endpoint_gets_chat_completions(name: str, upstream: str) -> None:
    """A compatible endpoint gets requests for chat completions, whatever the model is called."""
    await set_scenario(upstream, SAYS)
    model = chat_openai(name, streaming=True)
    async with served({"a": build_agent(model, [])}) as service:
        body = (await service.ask()).json()
    assert body["answer"] == loops.ANSWER
    assert [request["path"] for request in await requests(upstream)] == ["/v1/chat/completions"]


def test_without_an_endpoint_the_client_chooses_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an endpoint the client chooses which API of OpenAI it uses."""
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


async def test_model_made_after_a_service_ended_can_connect(upstream: str) -> None:
    """A model that is made after a service ended has open connections, not the closed ones."""
    for _ in range(2):
        await set_scenario(upstream, SAYS)
        agent = build_agent(chat_openai("gpt-4.1-mini", streaming=True), [])
        async with served({"a": agent}) as service:
            assert (await service.ask()).json()["answer"] == loops.ANSWER


def test_reads_time_out_and_client_retries_are_off() -> None:
    """Every read from a model has a timeout, and the client's own retries are off."""
    model = chat_openai("gpt-4.1-mini")
    timeout = model.root_async_client.timeout
    assert tuple(timeout) == (5.0, 60.0, 30.0, 5.0)
    assert model.root_async_client.max_retries == 0


def test_options_override_the_defaults() -> None:
    """Options of the caller override the builder's defaults."""
    model = chat_openai("gpt-4.1-mini", timeout=3.0, base_url="http://127.0.0.1:9/v1")
    assert model.request_timeout == 3.0
    assert str(model.root_async_client.base_url) == "http://127.0.0.1:9/v1/"


async def test_one_request_for_each_attempt(upstream: str) -> None:
    """An attempt is one request: the client repeats nothing by itself."""
    await set_scenario(upstream, {"type": "fail", "status": 500}, SAYS)
    async with served({"a": build_agent(chat_openai("m", streaming=True), [])}) as service:
        body = (await service.ask()).json()
        assert len(service.facts_of(ModelCallStarted)) == 2
    assert body["outcome"] == "completed"
    assert [request["status"] for request in await requests(upstream)] == [500, 200]


async def test_silent_model_ends_at_the_deadline(upstream: str) -> None:
    """The run's deadline ends the wait for a silent model, long before the model's timeout."""
    await set_scenario(upstream, {"type": "delay", "seconds": 60})
    async with served({"a": build_agent(chat_openai("m"), [])}) as service:
        asking = asyncio.ensure_future(service.ask())
        await service.times_out("a", "llm")
        response = await asking
    assert (response.status_code, response.json()["phase"]) == (504, "llm")
