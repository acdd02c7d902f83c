"""Sync tools that hold every thread: which runs wait and which do not."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests import fakes
from tests.service import Served, served, until

# Longer than whatever waits for it may take.
HELD_S = 60.0
# At once, on a machine that does other things too: nothing that holds is over by then.
SOON_S = 10.0


@asynccontextmanager
async def desk_with_slow_tools(kind: str) -> AsyncIterator[tuple[Served, fakes.ToolDesk]]:
    """A service with two threads and a sync tool that holds one until it is released."""
    desk_of_tools = fakes.ToolDesk(seconds=HELD_S)
    tools = desk_of_tools.tools()
    agents = {
        name: fakes.build(kind, fakes.ScriptedModel(script=fakes.calls_then_answers(name)), tools)
        for name in ("look", "block")
    }
    async with served(agents, tool_threads=2) as desk:
        yield desk, desk_of_tools
        desk_of_tools.seconds = 0.1
        desk_of_tools.release()
        await until(lambda: desk.service.threads.busy == 0)
        assert (await desk.ask(agent="block")).status_code == 200
        desk.books_balance()


@asynccontextmanager
async def desk_without_threads(kind: str) -> AsyncIterator[tuple[Served, fakes.ToolDesk]]:
    """A service whose every thread has a hanging tool of an ended run."""
    async with desk_with_slow_tools(kind) as (desk, tools):
        hung = [asyncio.ensure_future(desk.ask(agent="block")) for _ in range(2)]
        await until(lambda: desk.service.threads.busy == 2)
        for run_id in list(desk.service.runner.in_flight):
            await desk.client.delete(f"/runs/{run_id}")
        assert {r.status_code for r in await asyncio.gather(*hung)} == {503}
        assert desk.service.threads.busy == 2
        yield desk, tools


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_sync_tool_waits_for_a_thread(kind: str) -> None:
    """When runs in flight hold every thread, a sync tool waits for one until its deadline."""
    async with desk_with_slow_tools(kind) as (desk, tools):
        holding = [asyncio.ensure_future(desk.ask(agent="block", timeout=90)) for _ in range(2)]
        await until(lambda: desk.service.threads.busy == 2)
        began = time.monotonic()
        response = await desk.ask(agent="block", timeout=0.3)
        # For LangChain, a tool without a thread may not have started.
        assert response.status_code == 504
        assert response.json()["phase"] in ("tool:block", "other")
        assert time.monotonic() - began < SOON_S
        assert tools.started == ["block"] * 2
        tools.release()
        assert {r.status_code for r in await asyncio.gather(*holding)} == {200}


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_hung_tools_of_ended_runs_block_no_thread(kind: str) -> None:
    """Hung tools of ended runs that hold every thread do not keep other sync tools from one."""
    async with desk_without_threads(kind) as (desk, tools):
        assert desk.service.threads.abandoned == 2
        tools.seconds = 0.1
        assert (await desk.ask(agent="block")).status_code == 200
        assert desk.service.threads.abandoned == 2


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_hung_tools_delay_no_run_without_sync_tools(kind: str) -> None:
    """When hung tools hold every thread, a run without sync tools is served as usual."""
    async with desk_without_threads(kind) as (desk, _):
        began = time.monotonic()
        assert (await desk.ask(agent="look")).status_code == 200
        assert time.monotonic() - began < SOON_S
