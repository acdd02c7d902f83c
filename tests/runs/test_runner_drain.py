"""An orderly stop: notice, then drain, then an end for whatever is left."""

import asyncio

import pytest

from app.runs.errors import CutByShutdown, Draining
from app.runs.model import Outcome
from app.runs.ports import AgentCall
from app.runs.runner import GRACE_S
from tests.runs import scripted
from tests.runs.scripted import Desk, after, at_once, behind, hangs, loop_time, stubborn

pytestmark = pytest.mark.virtual_time


async def test_runs_are_accepted_during_the_notice() -> None:
    """During the notice of a drain, new runs are accepted and answered."""
    desk = Desk()
    drain = await desk.draining(60, 1.0)
    assert not desk.runner.draining
    assert (await desk.ask(at_once)).outcome is Outcome.COMPLETED
    drain.cancel()


async def test_new_runs_are_refused_after_the_notice() -> None:
    """After the notice, a new run is refused as draining, with its one final fact."""
    desk = Desk()
    door = asyncio.Event()
    slow = desk.start(behind(door))
    drain = await desk.draining(0.0, 30.0)
    refused = desk.start(at_once)
    ended = refused.ended.result()
    assert isinstance(ended.error, Draining)
    assert (ended.error.code, ended.outcome) == ("draining", Outcome.REJECTED)
    assert ended.error.retryable
    assert len(desk.finals(refused)) == 1
    door.set()
    assert (await slow.ended).outcome is Outcome.COMPLETED
    await drain


async def test_queued_runs_are_refused_as_draining() -> None:
    """Runs that wait when the notice is over are refused; they never start."""
    desk = Desk(slots=1, queue=3)
    first = desk.start(after(0.2))
    waiting = [desk.start(at_once) for _ in range(3)]
    await desk.runner.drain(0.0, 30.0)
    for run in waiting:
        ended = run.ended.result()
        assert ended.error is not None
        assert (ended.error.code, ended.outcome) == ("draining", Outcome.REJECTED)
    assert first.ended.result().outcome is Outcome.COMPLETED
    assert desk.idle()


async def test_queued_runs_may_start_during_the_notice() -> None:
    """A run that gets its slot during the notice is served."""
    desk = Desk(slots=1, queue=1)
    door = asyncio.Event()
    desk.start(behind(door))
    waiting = desk.start(at_once)
    drain = await desk.draining(60, 1.0)
    assert not desk.runner.draining
    door.set()
    assert (await waiting.ended).outcome is Outcome.COMPLETED
    drain.cancel()


async def test_runs_in_flight_may_finish() -> None:
    """A run that ends within the drain is answered, and the drain is over with it."""
    desk = Desk()
    run = desk.start(after(0.2))
    began = loop_time()
    await desk.runner.drain(0.0, 30.0)
    assert run.ended.result().outcome is Outcome.COMPLETED
    assert loop_time() - began == pytest.approx(0.2)


@pytest.mark.parametrize("obeys", [True, False])
async def test_long_runs_are_cut(obeys: bool) -> None:
    """A run that is too long is cut: draining, retryable, with its progress so far."""
    desk, door = Desk(), asyncio.Event()
    script = hangs if obeys else stubborn(door)

    async def working(call: AgentCall) -> str:
        scripted.tool_starts(call)
        scripted.tool_ends(call)
        await script(call)
        return "never"

    run = await desk.working(working, timeout_s=60)
    began = loop_time()
    await desk.runner.drain(0.0, 0.2)
    cut_after_s = 0.2 if obeys else 0.2 + GRACE_S
    assert loop_time() - began == pytest.approx(cut_after_s, abs=0.01)
    ended = run.ended.result()
    assert isinstance(ended.error, CutByShutdown)
    assert (ended.error.code, ended.error.retryable) == ("draining", True)
    assert [step.tool for step in ended.steps] == ["look"]
    assert len(desk.finals(run)) == 1
    assert desk.idle()
    door.set()


async def test_idle_service_drains_at_once() -> None:
    """With nothing in flight a drain takes no longer than its notice."""
    began = loop_time()
    await Desk().runner.drain(0.1, 30.0)
    assert loop_time() - began == pytest.approx(0.1)


async def test_draining_twice_changes_nothing() -> None:
    """A second drain finds nothing to do."""
    desk = Desk()
    run = desk.start(hangs)
    await desk.runner.drain(0.0, 0.0)
    await desk.runner.drain(0.0, 0.0)
    assert len(desk.finals(run)) == 1


async def test_deadline_during_the_drain_is_a_timeout() -> None:
    """A run whose own deadline comes first ends as a timeout, not as draining."""
    desk = Desk()
    run = desk.start(hangs, timeout_s=0.1)
    await desk.runner.drain(0.0, 30.0)
    assert run.ended.result().outcome is Outcome.TIMEOUT
