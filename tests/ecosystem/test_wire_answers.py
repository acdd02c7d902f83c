"""Agents over providers' real clients: whole answers are served, cut ones are failures."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool

from app.runs.events import ModelCallFinished, ToolCallStarted
from tests.ecosystem.test_wires import CLIENTS, CUT, FILTERED
from tests.ecosystem.wire import Turn
from tests.service import Served, served
from tests.streams import reading

ASKS = Turn(calls=[("look", {"order": "77"})])
HALF = "Half of a sent"


@tool
def look(order: str) -> str:
    """Look at an order."""
    return f"{order} is on its way"


@asynccontextmanager
async def serving(client: str, runs: dict[str, list[Turn]]) -> AsyncIterator[Served]:
    """An agent for each list of turns, over a client of its own."""
    async with AsyncExitStack() as stack:
        agents: dict[str, Any] = {}
        for name, turns in runs.items():
            chat = await stack.enter_async_context(CLIENTS[client](*turns))
            agents[name] = create_agent(chat, [look])
        yield await stack.enter_async_context(served(agents))


async def end(service: Served, agent: str, *, streamed: bool) -> dict[str, Any]:
    """How the run of this agent ended: its answer or its problem, either way it was asked for."""
    if streamed:
        return (await reading.stream(service, agent))[-1].data
    ended: dict[str, Any] = (await service.ask(agent=agent)).json()
    return ended


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("client", CLIENTS)
async def test_whole_answer_is_served(client: str, streamed: bool) -> None:
    """An agent asks for its tool and answers, with the usage of both calls."""
    turns = [ASKS, Turn("It is on its way.", thinking="Hm, so.")]
    async with serving(client, {"a": turns}) as service:
        ended = await end(service, "a", streamed=streamed)
        service.books_balance()
    assert (ended["outcome"], ended["answer"]) == ("completed", "It is on its way.")
    assert (ended["iterations"], ended["tool_calls"]) == (1, 1)
    assert (ended["usage"]["input_tokens"], ended["usage"]["output_tokens"]) == (20, 10)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("client", CLIENTS)
async def test_cut_answer_is_model_failed(client: str, streamed: bool) -> None:
    """A cut answer, by each of its provider's words, is the model's failure and no half answer."""
    words = [*CUT[client], *FILTERED[client]]
    names = {word.lower().replace("_", "-"): word for word in words}
    runs = {name: [Turn(HALF, reason=word)] for name, word in names.items()}
    async with serving(client, runs) as service:
        ended = {name: await end(service, name, streamed=streamed) for name in runs}
        service.books_balance()
        calls = service.facts_of(ModelCallFinished)
    codes = {name: (run.get("outcome"), run.get("code")) for name, run in ended.items()}
    assert codes == dict.fromkeys(runs, ("failed", "model_failed"))
    assert [str(call.outcome) for call in calls] == ["incomplete"] * len(words)
    assert [call.finish_reason for call in calls] == words
    cut = [run["retryable"] for run in ended.values()][: len(CUT[client])]
    assert all(cut)


@pytest.mark.parametrize("client", CLIENTS)
async def test_cut_call_starts_no_tool(client: str) -> None:
    """A call that is cut in a stream, or whole at a limit, starts no tool."""
    reason = CUT[client][0]
    calls = ASKS.calls
    runs = {"cut": [Turn(calls=calls, cut=True)], "limit": [Turn(calls=calls, reason=reason)]}
    async with serving(client, runs) as service:
        for name in runs:
            ended = await end(service, name, streamed=True)
            assert (ended["outcome"], ended["code"]) == ("failed", "model_failed"), name
        assert service.facts_of(ToolCallStarted) == []


@pytest.mark.parametrize("client", CLIENTS)
async def test_error_of_a_provider_is_model_failed(client: str) -> None:
    """An error of a provider is the model's failure, and its text stays inside."""
    for status in (400, 401, 429, 500):
        async with serving(client, {"a": [Turn(status=status)]}) as service:
            response = await service.ask(agent="a")
        assert (response.status_code, response.json()["code"]) == (500, "model_failed")
        assert "secret-in-exception" not in response.text
