"""The event loop monitor: how late the loop is, and the line of code that holds it."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest_asyncio
from langchain_core.tools import BaseTool, tool

from tests import fakes
from tests.telemetry.watched import Log, Scrape, Watched, watched

HELD_S = 1.2
LAG = "agent_event_loop_lag_seconds"
BLOCKED = "agent_event_loop_blocked_total"


class Hog:
    """Blocks the event loop until the watchdog has reported it, since that may be late itself."""

    log = Log()

    def reported(self) -> list[dict[str, Any]]:
        """The lines that say that it was the hog."""
        return [x for x in self.log.of("event_loop_blocked") if x["where"].endswith(" hog")]

    def tool(self) -> BaseTool:
        """What the agent calls."""

        @tool
        async def hog() -> str:
            """Hold the event loop itself."""
            before, end = len(self.reported()), time.monotonic() + HELD_S
            while (left := end - time.monotonic()) > 0 or len(self.reported()) == before:
                assert left > -20
            return "held the loop"

        return hog


@pytest_asyncio.fixture
async def hog() -> Hog:
    return Hog()


@pytest_asyncio.fixture
async def signals(hog: Hog) -> AsyncIterator[Watched]:
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("hog"))
    agents = {
        "hog": fakes.build("create_agent", model, [hog.tool()]),
        "quick": fakes.build("create_agent", model, fakes.ToolDesk(0.2).tools()),
    }
    async with watched(agents, tracing=False) as service:
        hog.log = service.log
        yield service


def late(samples: Scrape, seconds: str) -> float:
    """How many ticks were later than that."""
    return samples.total(f"{LAG}_count") - samples.total(f"{LAG}_bucket", le=seconds)


async def until_counted_and_reported(signals: Watched) -> Scrape:
    """The samples, once they count each block of the loop, and the log has a line of each.

    A machine that stands still holds the loop too: as seldom as a tick was half a second late.
    """

    def is_reported(samples: Scrape) -> bool:
        return samples.total(BLOCKED) == len(signals.log.of("event_loop_blocked"))

    samples = await signals.until(is_reported)
    assert samples.total(BLOCKED) <= late(samples, "0.5")
    return samples


async def test_blocking_line_is_named(signals: Watched, hog: Hog) -> None:
    """The line that blocks the loop is named within a second, once, and counted."""
    await asyncio.sleep(0.15)
    began = time.time()
    assert (await signals.desk.ask(agent="hog")).status_code == 200
    await signals.until(lambda samples: late(samples, "1.0") >= 1)
    (line,) = hog.reported()
    assert datetime.fromisoformat(line["timestamp"]).timestamp() - began < 5
    assert line["level"] == "warning"
    assert "test_runtime.py:" in line["where"]
    await until_counted_and_reported(signals)


async def test_short_block_is_lag_only(signals: Watched) -> None:
    """A short block is measured as lag, and not reported as a block."""
    await asyncio.sleep(0.15)
    before = late(await signals.scrape(), "0.05")
    await signals.desk.ask(agent="quick")
    await signals.until(lambda samples: late(samples, "0.05") > before)
    await asyncio.sleep(0.2)
    await until_counted_and_reported(signals)


async def lagged(signals: Watched, times: int) -> Scrape:
    """The samples, once the loop was late by a second so many times."""
    return await signals.until(lambda samples: late(samples, "1.0") >= times)


async def test_each_block_is_counted(signals: Watched, hog: Hog) -> None:
    """Each block of the loop is counted."""
    await signals.desk.ask(agent="hog")
    await lagged(signals, times=1)  # the loop turns again
    await signals.desk.ask(agent="hog")
    await lagged(signals, times=2)
    assert len(hog.reported()) == 2
    await until_counted_and_reported(signals)


async def test_idle_loop_is_not_late(signals: Watched) -> None:
    """An idle loop is measured several times a second, and is not late."""
    before = await signals.scrape()
    slow = 0
    for _ in range(10):  # what keeps these waiting keeps the ticks waiting too
        began = time.monotonic()
        await asyncio.sleep(0.05)
        slow += time.monotonic() - began > 0.15
    samples = await signals.scrape()
    assert samples.total(f"{LAG}_count") >= before.total(f"{LAG}_count") + 3
    assert late(samples, "0.25") - late(before, "0.25") <= slow
