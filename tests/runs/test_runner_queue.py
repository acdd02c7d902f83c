"""Runs among others: refused, queued, started, each in its own context."""

import asyncio
from contextvars import ContextVar

import pytest

from app.runs.errors import (
    Cancelled,
    Overloaded,
)
from app.runs.events import (
    RunQueued,
    RunStarted,
)
from app.runs.live import Run
from app.runs.model import Outcome, State
from app.runs.ports import AgentCall
from tests.runs.scripted import Desk, after, at_once, behind, hangs, raises, stubborn

pytestmark = pytest.mark.virtual_time


async def test_refused_runs_end_once() -> None:
    """A refused run ends at once, as rejected, and is in the history."""
    desk = Desk(slots=1, queue=0)
    door = asyncio.Event()
    first = desk.start(behind(door))
    refused = desk.start(at_once)
    ended = refused.ended.result()
    assert isinstance(ended.error, Overloaded)
    assert ended.outcome is Outcome.REJECTED
    assert str(ended.phase) == "queue"
    assert len(desk.finals(refused)) == 1
    found = desk.runner.find(refused.id)
    assert found is not None
    assert found.ended.result() == ended
    door.set()
    assert (await first.ended).outcome is Outcome.COMPLETED


async def test_deadline_in_the_queue_is_a_timeout() -> None:
    """A run whose deadline passes while it waits ends as a timeout in the phase `queue`."""
    desk = Desk(slots=1)
    door = asyncio.Event()
    first = desk.start(behind(door))
    waiting = desk.start(at_once, timeout_s=0.1)
    assert waiting.state is State.QUEUED
    ended = await waiting.ended
    assert (ended.outcome, str(ended.phase)) == (Outcome.TIMEOUT, "queue")
    assert ended.timings.queue_s == pytest.approx(ended.duration_s, abs=1e-6)
    assert len(desk.facts_of(RunStarted)) == 1
    assert len(desk.facts_of(RunQueued)) == 1
    door.set()
    await first.ended
    assert desk.idle()


who: ContextVar[str] = ContextVar("who", default="nobody")


async def test_queued_run_keeps_its_callers_context() -> None:
    """A queued run starts in its own caller's context, not in that of the run before."""
    desk = Desk(slots=1, queue=10)

    async def script(call: AgentCall) -> str:
        await after(0.005)(call)
        return f"{call.question} {who.get()}"

    async def caller(name: str) -> str:
        who.set(name)
        ended = await desk.ask(script, name)
        assert ended.answer is not None
        return ended.answer.text

    names = [f"caller-{number}" for number in range(8)]
    answers = await asyncio.gather(*(caller(name) for name in names))
    assert answers == [f"{name} {name}" for name in names]
    assert who.get() == "nobody"


async def test_many_runs_at_once_do_not_mix() -> None:
    """A hundred runs of every ending at once: each ends once and every slot is free again."""
    desk = Desk(slots=10, queue=100)
    door = asyncio.Event()
    scripts = [at_once, after(0.01), hangs, raises(ValueError()), stubborn(door)]
    runs: list[Run] = []
    for number in range(100):
        script = scripts[number % len(scripts)]
        runs.append(desk.start(script, str(number), timeout_s=0.6))
    for run in runs[::7]:
        desk.runner.stop(run, Cancelled())
    endings = await asyncio.gather(*(run.ended for run in runs))
    assert all(len(desk.finals(run)) == 1 for run in runs)
    for number, ended in enumerate(endings):
        assert ended.answer is None or ended.answer.text.endswith(f" {number}")
        assert (ended.answer is None) != (ended.error is None)
    assert desk.idle()
    assert not desk.runner.in_flight
    door.set()
