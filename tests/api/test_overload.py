"""When there is more work than places: wait, be refused at once, or run out of time waiting."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from app.runs.events import RunFinished, RunQueued, RunStarted
from app.runs.model import Outcome
from tests import fakes, faults, wire
from tests.service import Served, served, until


def _agents(seconds: float) -> dict[str, Any]:
    tools = fakes.ToolDesk(seconds=seconds).tools()
    agents = {
        name: fakes.build(
            "create_agent", fakes.ScriptedModel(script=fakes.calls_then_answers(name)), tools
        )
        for name in ("nap", "look", "stubborn", "block", "broken")
    }
    failing = fakes.build("create_agent", faults.model(error=RuntimeError("x")), tools)
    return {**agents, "model": failing, "node": faults.graph_that_raises(OSError("x"))}


async def napping(desk: Served, number: int) -> list[asyncio.Task[httpx.Response]]:
    """Take so many places or seats."""
    runner = desk.service.runner
    naps = [asyncio.create_task(desk.ask(agent="nap")) for _ in range(number)]
    await until(lambda: len(runner.in_flight) == number)
    return naps


async def end_all(desk: Served) -> None:
    """Cancel whatever is in flight."""
    for run_id in list(desk.service.runner.in_flight):
        await desk.client.delete(f"/runs/{run_id}")


@asynccontextmanager
async def desk_with(
    places: int, queue: int, seconds: float = 2.0, *, taken: int = 0
) -> AsyncIterator[Served]:
    """A service with so many places and seats, of which some are taken by naps."""
    async with served(_agents(seconds), max_running_runs=places, max_queued_runs=queue) as desk:
        naps = await napping(desk, taken)
        yield desk
        await end_all(desk)
        await asyncio.gather(*naps)
        desk.books_balance()


def is_refused(response: httpx.Response) -> int:
    """The response is a refusal; gives its Retry-After."""
    problem = response.json()
    assert (response.status_code, problem["code"]) == (503, "overloaded"), problem
    assert (problem["outcome"], problem["retryable"]) == ("rejected", True)
    assert (problem["iterations"], problem["tool_calls"]) == (0, 0)
    assert response.headers["x-run-id"] == problem["run_id"]
    after_s = response.headers["retry-after"]
    assert after_s.isdecimal()
    assert int(after_s) >= 1
    return int(after_s)


async def test_full() -> None:
    """When every place and every seat is taken, the next is refused at once."""
    async with desk_with(1, 1, taken=2) as desk:
        began = time.monotonic()
        response = await desk.ask(agent="look")
        assert time.monotonic() - began < 0.3
        is_refused(response)
        end = desk.end_of(response.json()["run_id"])
        assert (end.outcome, end.code) == (Outcome.REJECTED, "overloaded")
        assert not [f for f in desk.facts_of(RunStarted) if f.run_id == end.run_id]


async def test_no_queue() -> None:
    """A service without a queue refuses what it has no place for."""
    async with desk_with(2, 0, taken=2) as desk:
        is_refused(await desk.ask(agent="look"))


async def test_a_queued_run() -> None:
    """A run that waits is shown as queued, in the phase `queue`."""
    async with desk_with(1, 3, taken=3) as desk:
        waiting = (await desk.client.get("/runs?state=queued")).json()["runs"]
        assert [(run["state"], run["phase"]) for run in waiting] == [("queued", "queue")] * 2
        assert len((await desk.client.get("/runs?state=running")).json()["runs"]) == 1
        assert len(desk.facts_of(RunQueued)) == 2


async def test_first_come_first_served() -> None:
    """Runs that waited are served in the order of their arrival, with the wait in their timings."""
    async with desk_with(1, 3, seconds=0.2) as desk:
        first = asyncio.ensure_future(desk.ask("first", agent="nap"))
        await until(lambda: desk.service.runner.in_flight)
        order: list[str] = []

        async def ask(name: str) -> Any:
            run = (await desk.ask(name, agent="look")).json()
            order.append(name)
            return run

        asking = []
        for number in range(3):
            asking.append(asyncio.ensure_future(ask(f"q{number}")))
            await until(lambda: desk.service.runner.admission.waiting == len(asking))
        runs = await asyncio.gather(*asking)
        assert order == ["q0", "q1", "q2"]
        assert runs[0]["timings"]["queue_s"] > 0.1
        assert runs[0]["duration_s"] == pytest.approx(sum(runs[0]["timings"].values()), abs=0.001)
        assert (await first).json()["timings"]["queue_s"] < 0.1


async def test_out_of_time_in_the_queue() -> None:
    """A run whose time runs out while it waits is a 504 of the phase `queue`."""
    async with desk_with(1, 1, taken=1) as desk:
        began = time.monotonic()
        response = await desk.ask(agent="look", timeout=0.3)
        assert 0.3 <= time.monotonic() - began < 0.9
        problem = response.json()
        assert (response.status_code, problem["code"]) == (504, "timeout")
        assert (problem["phase"], problem["outcome"]) == ("queue", "timeout")
        assert problem["timings"]["queue_s"] == pytest.approx(0.3, abs=0.3)
        assert problem["timings"]["llm_s"] == problem["timings"]["tools_s"] == 0
        assert desk.service.runner.admission.waiting == 0
        end = desk.end_of(problem["run_id"])
        assert (end.outcome, str(end.phase)) == (Outcome.TIMEOUT, "queue")


async def test_cancelled_in_the_queue() -> None:
    """A run that is cancelled while it waits never starts."""
    async with desk_with(1, 1, taken=1) as desk:
        asking = asyncio.ensure_future(desk.ask(agent="look"))
        await until(lambda: desk.service.runner.admission.waiting)
        (run,) = (await desk.client.get("/runs?state=queued")).json()["runs"]
        stopped = await desk.client.delete(f"/runs/{run['run_id']}")
        assert (stopped.status_code, stopped.json()["result"]) == (200, "cancelled")
        response = await asking
        assert (response.status_code, response.json()["phase"]) == (503, "queue")
        assert not [f for f in desk.facts_of(RunStarted) if f.run_id == run["run_id"]]


async def test_left_from_the_queue() -> None:
    """A caller that leaves while it waits gives back its seat within a second."""
    async with desk_with(1, 1, taken=1) as desk:
        async with wire.connection(desk.url) as (_, writer):
            writer.write(wire.ask("/agents/look", question="q"))
            await until(lambda: desk.service.runner.admission.waiting)
        await until(lambda: not desk.service.runner.admission.waiting, 1.0)
        outcomes = [fact.outcome for fact in desk.facts_of(RunFinished)]
        assert outcomes == [Outcome.DISCONNECTED]


@asynccontextmanager
async def taught(seconds: float, waiting: int) -> AsyncIterator[Served]:
    """A service of one place that knows how long its runs take, with so many that wait."""
    async with desk_with(1, 3, seconds) as desk:
        assert (await desk.ask(agent="nap")).status_code == 200
        naps = await napping(desk, waiting + 1)
        yield desk
        await end_all(desk)
        await asyncio.gather(*naps)


async def test_a_wait_that_is_too_long() -> None:
    """A run whose usual wait alone is longer than its timeout is refused at arrival."""
    async with taught(0.5, waiting=2) as desk:
        began = time.monotonic()
        response = await desk.ask(agent="nap", timeout=0.4)
        assert time.monotonic() - began < 0.3
        assert is_refused(response) in (1, 2)


async def test_a_deadline_that_cannot_be_met() -> None:
    """A run that would get its place but not the time to use it is refused at arrival."""
    async with taught(0.8, waiting=0) as desk:
        # The place is free in 0.8 s and the run takes 0.8 s more, so 1.1 s cannot be enough.
        is_refused(await desk.ask(agent="nap", timeout=1.1))


async def test_a_deadline_that_can_be_met() -> None:
    """A run that has the time to wait is not refused."""
    async with taught(0.3, waiting=1) as desk:
        assert (await desk.ask(agent="nap", timeout=5)).status_code == 200


async def test_retry_after_is_learned() -> None:
    """Retry-After follows what runs took."""
    async with taught(0.6, waiting=3) as desk:
        # Three that wait and the one that asks, 0.6 s each.
        assert is_refused(await desk.ask(agent="nap")) in (2, 3)


@pytest.mark.parametrize(
    ("agent", "status", "outcome"),
    [("look", 200, "completed"), ("broken", 200, "completed"), ("model", 500, "failed"),
     ("node", 500, "failed"), ("nap", 504, "timeout"), ("stubborn", 504, "timeout"),
     ("block", 504, "timeout")],
)  # fmt: skip
async def test_places_come_back(agent: str, status: int, outcome: str) -> None:
    """However a run ends, its place is free when its caller knows, and the next one gets it."""
    async with desk_with(1, 1, seconds=0.8) as desk:
        for _ in range(3):
            response = await desk.ask(agent=agent, timeout=0.15 if status == 504 else 5.0)
            assert response.status_code == status
            assert desk.end_of(response.headers["x-run-id"]).outcome == outcome
            assert desk.service.runner.admission.running == 0
        assert (await desk.ask(agent="look")).status_code == 200


@asynccontextmanager
async def desk_with_slow_tools(kind: str) -> AsyncIterator[Served]:
    """A service with two threads and a sync tool that takes its time."""
    tools = fakes.ToolDesk(seconds=0.9).tools()
    agents = {
        name: fakes.build(kind, fakes.ScriptedModel(script=fakes.calls_then_answers(name)), tools)
        for name in ("look", "block")
    }
    async with served(agents, tool_threads=2) as desk:
        yield desk
        await until(lambda: desk.service.threads.busy == 0)
        assert (await desk.ask(agent="block")).status_code == 200
        desk.books_balance()


@asynccontextmanager
async def desk_without_threads(kind: str) -> AsyncIterator[Served]:
    """A service whose every thread is held by a tool that hangs, its run long over."""
    async with desk_with_slow_tools(kind) as desk:
        hung = [asyncio.ensure_future(desk.ask(agent="block", timeout=0.2)) for _ in range(2)]
        assert {r.status_code for r in await asyncio.gather(*hung)} == {504}
        assert desk.service.threads.busy == 2
        yield desk


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_threads_run_out(kind: str) -> None:
    """When runs in flight hold every thread, a sync tool waits for one until its deadline."""
    async with desk_with_slow_tools(kind) as desk:
        holding = [asyncio.ensure_future(desk.ask(agent="block")) for _ in range(2)]
        await until(lambda: desk.service.threads.busy == 2)
        began = time.monotonic()
        response = await desk.ask(agent="block", timeout=0.3)
        # A tool that has no thread yet may not have begun, as far as LangChain tells.
        assert response.status_code == 504
        assert response.json()["phase"] in ("tool:block", "other")
        assert time.monotonic() - began < 0.9
        assert {r.status_code for r in await asyncio.gather(*holding)} == {200}


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_hung_tools_make_room(kind: str) -> None:
    """Hung tools of ended runs that hold every thread do not keep other sync tools from one."""
    async with desk_without_threads(kind) as desk:
        assert desk.service.threads.abandoned == 2
        assert (await desk.ask(agent="block")).status_code == 200


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_a_hung_tool_hurts_nobody_else(kind: str) -> None:
    """When hung tools hold every thread, a run without sync tools is served as ever."""
    async with desk_without_threads(kind) as desk:
        began = time.monotonic()
        assert (await desk.ask(agent="look")).status_code == 200
        assert time.monotonic() - began < 0.5


async def test_a_storm() -> None:
    """Of two hundred callers at once, each is answered or refused, and the places come back."""
    async with desk_with(4, 8, seconds=0.05) as desk:
        responses = await asyncio.gather(*(desk.ask(agent="nap") for _ in range(200)))
        statuses = [response.status_code for response in responses]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 12
        assert len(desk.facts_of(RunFinished)) == 200
        assert max(end.duration_s for end in desk.facts_of(RunFinished)) < 10
