"""When there is more work than slots: wait, be refused at once, or time out in the queue."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from langchain_core.tools import BaseTool

from app.runs.events import RunFinished, RunQueued, RunStarted
from app.runs.model import Outcome
from tests import fakes, faults, wire
from tests.service import Served, served, until

# Longer than whatever waits for it may take.
HELD_S = 60.0
# At once, on a machine that does other things too: nothing that holds is over by then.
SOON_S = 10.0


def _agents(tools: list[BaseTool]) -> dict[str, Any]:
    agents = {
        name: fakes.build(
            "create_agent", fakes.ScriptedModel(script=fakes.calls_then_answers(name)), tools
        )
        for name in ("nap", "look", "stubborn", "block", "broken")
    }
    failing = fakes.build("create_agent", faults.model(error=RuntimeError("x")), tools)
    return {**agents, "model": failing, "node": faults.graph_that_raises(OSError("x"))}


async def napping(desk: Served, number: int) -> list[asyncio.Task[httpx.Response]]:
    """Take so many slots or queue positions."""
    runner = desk.service.runner
    naps = [asyncio.create_task(desk.ask(agent="nap")) for _ in range(number)]
    await until(lambda: len(runner.in_flight) == number)
    return naps


async def end_all(desk: Served, *run_ids: str) -> None:
    """Cancel these runs, or whatever is in flight."""
    for run_id in run_ids or list(desk.service.runner.in_flight):
        await desk.client.delete(f"/runs/{run_id}")


@asynccontextmanager
async def desk_with(
    slots: int, queue: int, seconds: float = HELD_S, *, taken: int = 0
) -> AsyncIterator[Served]:
    """A service with so many slots and queue positions, some of which naps take."""
    held = fakes.ToolDesk(seconds=seconds)
    agents = _agents(held.tools())
    async with served(agents, max_running_runs=slots, max_queued_runs=queue) as desk:
        naps = await napping(desk, taken)
        yield desk
        held.release()
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


async def test_full_service_refuses() -> None:
    """When every slot and every queue position is taken, the next run is refused at once."""
    async with desk_with(1, 1, taken=2) as desk:
        began = time.monotonic()
        response = await desk.ask(agent="look")
        assert time.monotonic() - began < SOON_S
        is_refused(response)
        end = desk.end_of(response.json()["run_id"])
        assert (end.outcome, end.code) == (Outcome.REJECTED, "overloaded")
        assert not [f for f in desk.facts_of(RunStarted) if f.run_id == end.run_id]


async def test_service_without_a_queue_refuses() -> None:
    """A service without a queue refuses a run for which it has no slot."""
    async with desk_with(2, 0, taken=2) as desk:
        is_refused(await desk.ask(agent="look"))


async def test_queued_run_is_shown() -> None:
    """A waiting run is shown as queued, in the phase `queue`."""
    async with desk_with(1, 3, taken=3) as desk:
        waiting = (await desk.client.get("/runs?state=queued")).json()["runs"]
        assert [(run["state"], run["phase"]) for run in waiting] == [("queued", "queue")] * 2
        assert len((await desk.client.get("/runs?state=running")).json()["runs"]) == 1
        assert len(desk.facts_of(RunQueued)) == 2


async def test_first_come_first_served() -> None:
    """Waiting runs start in the order of their arrival, with the wait in their timings."""
    async with desk_with(1, 3, taken=1) as desk:
        asking = []
        for number in range(3):
            asking.append(asyncio.ensure_future(desk.ask(f"q{number}", agent="look")))
            await until(lambda: desk.service.runner.admission.waiting == len(asking))
        waited_since = time.monotonic()
        await asyncio.sleep(0.1)
        waited_s = time.monotonic() - waited_since
        (first, *_) = desk.facts_of(RunStarted)
        await end_all(desk, first.run_id)
        runs = [response.json() for response in await asyncio.gather(*asking)]
        started = [fact.run_id for fact in desk.facts_of(RunStarted)]
        assert started == [first.run_id, *(run["run_id"] for run in runs)]
        assert all(run["timings"]["queue_s"] >= waited_s - 0.001 for run in runs)
        assert runs[0]["duration_s"] == pytest.approx(sum(runs[0]["timings"].values()), abs=0.001)
        queued = {fact.run_id for fact in desk.facts_of(RunQueued)}
        assert queued == {run["run_id"] for run in runs}


async def test_timeout_in_the_queue_is_a_504() -> None:
    """A run whose deadline passes in the queue is a 504 of the phase `queue`."""
    async with desk_with(1, 1, taken=1) as desk:
        began = time.monotonic()
        response = await desk.ask(agent="look", timeout=0.3)
        assert 0.3 <= time.monotonic() - began < SOON_S
        problem = response.json()
        assert (response.status_code, problem["code"]) == (504, "timeout")
        assert (problem["phase"], problem["outcome"]) == ("queue", "timeout")
        assert problem["timings"]["queue_s"] == pytest.approx(
            sum(problem["timings"].values()), abs=0.01
        )
        assert problem["timings"]["llm_s"] == problem["timings"]["tools_s"] == 0
        assert desk.service.runner.admission.waiting == 0
        end = desk.end_of(problem["run_id"])
        assert (end.outcome, str(end.phase)) == (Outcome.TIMEOUT, "queue")


async def test_cancelled_queued_run_never_starts() -> None:
    """A run that is cancelled in the queue never starts."""
    async with desk_with(1, 1, taken=1) as desk:
        asking = asyncio.ensure_future(desk.ask(agent="look"))
        await desk.busy(waiting=1)
        (run,) = (await desk.client.get("/runs?state=queued")).json()["runs"]
        stopped = await desk.client.delete(f"/runs/{run['run_id']}")
        assert (stopped.status_code, stopped.json()["result"]) == (200, "cancelled")
        response = await asking
        assert (response.status_code, response.json()["phase"]) == (503, "queue")
        assert not [f for f in desk.facts_of(RunStarted) if f.run_id == run["run_id"]]


async def test_disconnect_in_the_queue_frees_the_position() -> None:
    """A caller that disconnects in the queue frees its position within a second."""
    async with desk_with(1, 1, taken=1) as desk:
        async with wire.connection(desk.url) as (_, writer):
            writer.write(wire.ask("/agents/look", question="q"))
            await desk.busy(waiting=1)
        await until(lambda: not desk.service.runner.admission.waiting, SOON_S)
        outcomes = [fact.outcome for fact in desk.facts_of(RunFinished)]
        assert outcomes == [Outcome.DISCONNECTED]


def mean_service_s_of(desk: Served) -> float:
    """The mean duration of a run, as the service knows it."""
    mean_s = desk.service.runner.admission.mean_service_s
    assert mean_s is not None
    return mean_s


@asynccontextmanager
async def with_known_durations(
    seconds: float, waiting: int
) -> AsyncIterator[tuple[Served, fakes.ToolDesk]]:
    """A service of one slot that knows how long its runs take, with so many that wait.

    The slot and the queue positions are held until the tools are released.
    """
    tools = fakes.ToolDesk(seconds=seconds)
    async with served(_agents(tools.tools()), max_running_runs=1, max_queued_runs=3) as desk:
        assert (await desk.ask(agent="nap")).status_code == 200
        assert mean_service_s_of(desk) >= seconds
        tools.seconds = HELD_S
        naps = await napping(desk, waiting + 1)
        yield desk, tools
        await end_all(desk)
        await asyncio.gather(*naps)
        desk.books_balance()


async def test_expected_wait_above_the_timeout_is_refused() -> None:
    """A run whose expected wait exceeds its timeout is refused at arrival."""
    async with with_known_durations(0.5, waiting=2) as (desk, _):
        began = time.monotonic()
        response = await desk.ask(agent="nap", timeout=0.4)
        assert time.monotonic() - began < SOON_S
        # Two that wait and the one that asks.
        assert is_refused(response) == math.ceil(3 * mean_service_s_of(desk))


async def test_unreachable_deadline_is_refused() -> None:
    """A run that would get its slot too late to use it is refused at arrival."""
    async with with_known_durations(0.8, waiting=0) as (desk, _):
        # The slot is free in 0.8 s and the run takes 0.8 s more, so 1.1 s cannot be enough.
        is_refused(await desk.ask(agent="nap", timeout=1.1))


async def test_reachable_deadline_is_accepted() -> None:
    """A run that has the time to wait is accepted."""
    async with with_known_durations(0.3, waiting=1) as (desk, tools):
        asking = asyncio.ensure_future(desk.ask(agent="nap", timeout=90))
        await until(lambda: desk.service.runner.admission.waiting == 2)
        assert len(await tools.started_calls(2)) == 2
        tools.seconds = 0.0
        tools.release()
        assert (await asking).status_code == 200


async def test_retry_after_follows_the_run_times() -> None:
    """Retry-After follows the durations of past runs."""
    async with with_known_durations(0.6, waiting=3) as (desk, _):
        # Three that wait and the one that asks.
        assert is_refused(await desk.ask(agent="nap")) == math.ceil(4 * mean_service_s_of(desk))


@pytest.mark.parametrize(
    ("agent", "status", "outcome"),
    [("look", 200, "completed"), ("broken", 200, "completed"), ("model", 500, "failed"),
     ("node", 500, "failed"), ("nap", 504, "timeout"), ("stubborn", 504, "timeout"),
     ("block", 504, "timeout")],
)  # fmt: skip
async def test_every_end_frees_the_slot(agent: str, status: int, outcome: str) -> None:
    """However a run ends, its slot is free before its caller knows, and the next run gets it."""
    async with desk_with(1, 1) as desk:
        for _ in range(3):
            response = await desk.ask(agent=agent, timeout=0.15 if status == 504 else 60.0)
            assert response.status_code == status
            assert desk.end_of(response.headers["x-run-id"]).outcome == outcome
            assert desk.service.runner.admission.running == 0
        assert (await desk.ask(agent="look")).status_code == 200


async def test_two_hundred_callers_free_every_slot() -> None:
    """Each of two hundred callers at once is answered or refused, and every slot is free again."""
    async with desk_with(4, 8, seconds=0.05) as desk:
        responses = await asyncio.gather(*(desk.ask(agent="nap") for _ in range(200)))
        statuses = [response.status_code for response in responses]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 12
        assert len(desk.facts_of(RunFinished)) == 200
        assert max(end.duration_s for end in desk.facts_of(RunFinished)) < 25
