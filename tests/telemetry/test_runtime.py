"""The event loop under watch: how late it is, and the line of code that holds it."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime

import pytest_asyncio

from tests import fakes
from tests.telemetry.watched import Scrape, Watched, watched

HELD_S = 1.2
LAG = "agent_event_loop_lag_seconds"
BLOCKED = "agent_event_loop_blocked_total"


@pytest_asyncio.fixture
async def watch() -> AsyncIterator[Watched]:
    agents = {}
    for name, seconds in (("hog", HELD_S), ("quick", 0.2)):
        model = fakes.ScriptedModel(script=fakes.calls_then_answers("hog"))
        agents[name] = fakes.build("create_agent", model, fakes.ToolDesk(seconds).tools())
    async with watched(agents, tracing=False) as service:
        yield service


def late(samples: Scrape, seconds: str) -> float:
    """How many ticks were later than that."""
    return samples.total(f"{LAG}_count") - samples.total(f"{LAG}_bucket", le=seconds)


async def test_a_tool_that_holds_the_loop(watch: Watched) -> None:
    """The line that holds the loop is named within a second, once, and counted."""
    await asyncio.sleep(0.15)
    began = time.time()
    assert (await watch.desk.ask(agent="hog")).status_code == 200
    line = await watch.log.one("event_loop_blocked")
    assert datetime.fromisoformat(line["timestamp"]).timestamp() - began < 5
    assert line["level"] == "warning"
    assert "fakes.py:" in line["where"]
    assert line["where"].endswith(" hog")
    await asyncio.sleep(0.2)
    samples = await watch.scrape()
    assert samples.total(BLOCKED) == 1
    assert late(samples, "1.0") == 1


async def test_a_tool_that_is_a_little_slow(watch: Watched) -> None:
    """What holds the loop for a moment is seen as lag, and is not called a block."""
    await asyncio.sleep(0.15)
    before = late(await watch.scrape(), "0.05")
    await watch.desk.ask(agent="quick")
    await asyncio.sleep(0.2)
    samples = await watch.scrape()
    assert late(samples, "0.05") > before
    assert samples.total(BLOCKED) == 0
    assert not watch.log.of("event_loop_blocked")


async def test_held_twice(watch: Watched) -> None:
    """Each time that the loop is held is counted."""
    for _ in range(2):
        await watch.desk.ask(agent="hog")
        await asyncio.sleep(0.3)
    assert (await watch.scrape()).total(BLOCKED) == 2


async def test_an_idle_loop(watch: Watched) -> None:
    """A loop with little to do is looked at several times a second, and is not late."""
    before = (await watch.scrape()).total(f"{LAG}_count")
    await asyncio.sleep(0.5)
    samples = await watch.scrape()
    assert samples.total(f"{LAG}_count") >= before + 3
    assert late(samples, "0.25") == 0
