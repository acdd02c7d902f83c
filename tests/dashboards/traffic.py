"""Requests that cause every outcome there is, and the traffic of a bad hour in a few minutes."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import httpx

from tests.dashboards.shop import PLACES, QUEUED

_LONGEST_S = 20.0
_GONE_AFTER_S = 0.3

# What a run is asked, and the outcome that it then has.
ENDINGS = {
    "find_order": "completed",
    "loop": "iteration_limit",
    "slow": "timeout",
    "fail": "failed",
    "ask_a_human": "interrupted",
}
# What goes wrong inside of runs that end well.
MISHAPS = ("long", "pairs", "broken", "limited", "flaky", "invent", "mistake", "hold_the_loop")
TIMEOUTS = ("slow", "wait_for_carrier", "old_books", "stubborn")


class Shop:
    """Asks the shop's agents."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def ask(self, agent: str, question: str, **options: Any) -> str:
        """How the run ended."""
        payload = {"question": question, **options}
        body = (await self._client.post(f"/agents/{agent}", json=payload)).json()
        return str(body.get("outcome") or body["code"])

    async def submit(self, agent: str, question: str) -> None:
        """Ask in the background, and do not wait."""
        await self._client.post(f"/agents/{agent}/async", json={"question": question})

    async def follow(self, agent: str, question: str) -> None:
        """Read a stream to its end."""
        path = f"/agents/{agent}/stream"
        async with self._client.stream("POST", path, json={"question": question}) as response:
            async for _ in response.aiter_lines():
                pass

    async def leave(self, agent: str, question: str, *, stream: bool = False) -> None:
        """Ask, and be gone before the answer."""
        path = f"/agents/{agent}{'/stream' if stream else ''}"
        with suppress(httpx.TimeoutException):
            await self._client.post(path, json={"question": question}, timeout=_GONE_AFTER_S)

    async def one(self, agent: str, question: str, chance: int) -> None:
        """As callers do: most wait, some read a stream, a few leave early."""
        if chance % _ONE_STREAM_IN == 1:
            await self.follow(agent, question)
        elif chance % _ONE_SUBMITTED_IN == 2:
            # Nothing slow: a background run has more time than the deadline that is drawn.
            await self.submit(agent, f"pairs {uuid4()}")
        elif chance == 0:
            await self.leave(agent, question, stream=True)
        else:
            await self.ask(agent, question)

    async def cancel(self, agent: str) -> None:
        """Ask for something long, and end it from outside."""
        asking = asyncio.create_task(self.ask(agent, "wait_for_carrier"))
        run, *_ = await self._at_work(agent, 1)
        await self._client.delete(f"/runs/{run['run_id']}")
        await asking

    async def crowd(self, agent: str) -> None:
        """Fill every slot; some later callers time out in the queue, some are refused."""
        async with asyncio.TaskGroup() as asked:
            for _ in range(PLACES):
                asked.create_task(self.ask(agent, "wait_for_carrier"))
            await self._at_work(agent, PLACES)
            for _ in range(QUEUED + 4):
                asked.create_task(self.ask(agent, "find_order", timeout=0.7))

    async def _at_work(self, agent: str, least: int) -> list[dict[str, Any]]:
        """The executing runs of an agent, once there are so many."""
        runs: list[dict[str, Any]] = []
        async with asyncio.timeout(_LONGEST_S):
            while len(runs) < least:
                await asyncio.sleep(0.05)
                query = {"state": "running", "agent": agent}
                runs = (await self._client.get("/runs", params=query)).json()["runs"]
        return runs


@asynccontextmanager
async def shop(url: str) -> AsyncIterator[Shop]:
    """A caller of the service at `url`."""
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=url, timeout=_LONGEST_S, limits=limits) as client:
        yield Shop(client)


async def every_outcome(url: str) -> None:
    """Each outcome, phase and mishap, most of them twice: a rate needs a second sample."""
    async with shop(url) as asked:
        for question in ("find_order", "loop", "fail") * 2:
            await asked.submit("support", f"{question} {uuid4()}")
        # First: a service that knows its durations refuses callers that would time out queued.
        await asked.crowd("orders")
        for question in (*ENDINGS, *MISHAPS) * 2:
            await asked.ask("support", f"{question} {uuid4()}")
        for agent in ("orders", "research"):
            await asyncio.gather(asked.ask(agent, "pairs"), asked.follow(agent, "long"))
        await asyncio.gather(*(asked.ask("orders", what, timeout=0.7) for what in TIMEOUTS))
        await asyncio.gather(
            asked.leave("orders", "wait_for_carrier"),
            asked.leave("orders", "wait_for_carrier", stream=True),
        )
        await asked.cancel("research")


# What the runs of a stretch of time are asked, and how often of ten: calm, then a model that
# loops, then a provider and a tool that are slow, and still are.
_USUAL = {"find_order": 6, "pairs": 2, "long": 2}
_STRETCHES: Sequence[tuple[float, dict[str, dict[str, int]]]] = (
    (0.3, {"support": {"find_order": 8, "mistake": 1, "ask_a_human": 1}}),
    (0.3, {"research": {"loop": 6, "long": 4}, "support": {"find_order": 5, "invent": 5}}),
    (
        0.4,
        {
            "orders": {"slow": 4, "limited": 3, "find_order": 3},
            "support": {"wait_for_carrier": 3, "old_books": 3, "fail": 2, "broken": 2},
        },
    ),
)
_ARRIVALS_PER_S = {"orders": 1.6, "research": 0.8, "support": 0.6}
_ONE_STREAM_IN, _ONE_SUBMITTED_IN = 4, 10


async def bad_minutes(url: str, seconds: float) -> None:
    """Traffic like that of an hour in which things go wrong, one after the other."""
    dice = random.Random(3)
    async with shop(url) as asked, asyncio.TaskGroup() as runs:
        for share, wrong in _STRETCHES:
            end = asyncio.get_running_loop().time() + share * seconds
            while asyncio.get_running_loop().time() < end:
                (agent,) = dice.choices([*_ARRIVALS_PER_S], [*_ARRIVALS_PER_S.values()])
                what = wrong.get(agent, _USUAL)
                (question,) = dice.choices([*what], [*what.values()])
                runs.create_task(asked.one(agent, f"{question} {uuid4()}", dice.randrange(40)))
                await asyncio.sleep(dice.expovariate(sum(_ARRIVALS_PER_S.values())))
