"""Agents over providers' real clients, in every mode: turns, the limit, failures, all reports."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from langchain.agents import create_agent

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import Expected, completed, failed, limited
from tests.ecosystem.served import MODES, WITHOUT_STORE
from tests.ecosystem.serves import serves
from tests.ecosystem.test_wires import CLIENTS
from tests.ecosystem.toolbox import offline, weather
from tests.ecosystem.wire import Turn

LOOK = ("weather", {"city": "Bonn"})
LOOKS = Turn(calls=[LOOK, ("weather", {"city": "Ulm"})])
HOW = "Turns, tools, usage and the limit are the same, streamed or not."
clients = pytest.mark.parametrize("client", CLIENTS)


@asynccontextmanager
async def agents(client: str, *turns: Turn) -> AsyncIterator[list[Any]]:
    """An agent for each mode, each over a client and a server of its own."""
    async with AsyncExitStack() as stack:
        chats = [await stack.enter_async_context(CLIENTS[client](*turns)) for _ in MODES]
        yield [create_agent(chat, [weather, offline]) for chat in chats]


async def check(
    serve: Serve, client: str, turns: list[Turn], expected: Expected, **how: Any
) -> Any:
    """Serve an agent over a client whose provider says these turns."""
    async with agents(client, *turns) as made:
        return await serve(made.pop, expected, **how)


@serves("langchain-anthropic", "`ChatAnthropic`", HOW)
@serves("langchain-google-genai", "`ChatGoogleGenerativeAI`", HOW)
@serves("langchain-ollama", "`ChatOllama`", HOW)
@serves("langchain-openai", "`ChatOpenAI`, with both of its APIs", HOW)
@clients
async def test_parallel_tools_are_one_turn(serve: Serve, client: str) -> None:
    """Two tools at once are one turn, and `usage` has both calls."""
    turns = [LOOKS, Turn("It is sunny.", thinking="Hm, so.")]
    for run in await check(serve, client, turns, completed("It is sunny.", 1, 2)):
        usage = run.body["usage"]
        assert (usage["input_tokens"], usage["output_tokens"]) == (20, 10)


@clients
async def test_provider_is_asked_once_more_at_the_limit(serve: Serve, client: str) -> None:
    """At the limit the provider is asked once more, and its answer is the last one."""
    turns = [LOOKS, LOOKS, Turn("concluded")]
    await check(serve, client, turns, limited("concluded", 2, 4), max_iterations=2)


@clients
async def test_provider_reads_the_failure_of_a_tool(serve: Serve, client: str) -> None:
    """The provider reads that a tool raised, and answers."""
    turns = [Turn(calls=[("offline", {"city": "Bonn"})]), Turn("I could not look.")]
    for run in await check(serve, client, turns, completed("I could not look.", 1, 1)):
        assert run.outcomes == {"offline": ["tool_error"]}


@clients
async def test_error_of_a_provider_is_model_failed(serve: Serve, client: str) -> None:
    """An error of a provider is the model's failure."""
    expected = failed("model_failed", retryable=True)
    await check(serve, client, [Turn(status=503)], expected, modes=WITHOUT_STORE)
