"""The remaining time, as code inside a run sees it."""

import asyncio
import contextvars
import math
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.runs import remaining
from app.runs.deadline import Current, current
from app.runs.model import Outcome
from app.runs.ports import AgentCall
from tests.runs.scripted import Desk, after, hangs


def within(deadline: float) -> Iterator[float]:
    """Every reading of remaining() in a run that ends then, as long as it is asked."""
    context = contextvars.copy_context()
    context.run(current.set, Current("run", deadline))
    while True:
        yield context.run(remaining)


def test_no_deadline_outside_a_run() -> None:
    """Outside a run there is no deadline."""
    assert remaining() == math.inf


@given(st.floats(-1000, 1000))
def test_never_negative_and_never_more_than_the_deadline(offset_s: float) -> None:
    """The remaining time is the time to the deadline, or zero."""
    before = time.monotonic()
    deadline = before + offset_s
    left = next(within(deadline))
    assert 0.0 <= left <= max(0.0, offset_s)
    assert left >= max(0.0, deadline - time.monotonic()) or left == 0.0


@given(st.floats(0, 0.001), st.integers(2, 50))
def test_remaining_time_never_grows(timeout_s: float, readings: int) -> None:
    """Later readings are never larger."""
    clock = within(time.monotonic() + timeout_s)
    seen = [next(clock) for _ in range(readings)]
    assert seen == sorted(seen, reverse=True)
    assert all(left >= 0 for left in seen)


pytestmark = pytest.mark.virtual_time


@pytest.mark.parametrize("timeout_s", [40.0, 100.0])
async def test_async_code_sees_its_deadline(timeout_s: float) -> None:
    """Async code in a run sees the time to its own deadline, and so do its subtasks."""
    seen: list[float] = []

    async def script(_: AgentCall) -> str:
        seen.append(remaining())
        seen.append(await asyncio.create_task(_later()))
        return "done"

    async def _later() -> float:
        return remaining()

    await Desk().ask(script, timeout_s=timeout_s)
    assert seen == pytest.approx([timeout_s] * 2)


@pytest.mark.threads
async def test_code_on_a_thread_sees_its_deadline() -> None:
    """Sync code that asyncio sends to a thread sees the deadline too."""
    desk = Desk()
    asyncio.get_running_loop().set_default_executor(desk.threads)

    async def script(_: AgentCall) -> str:
        return str(await asyncio.to_thread(remaining))

    ended = await desk.ask(script, timeout_s=60.0)
    assert ended.answer is not None
    assert 30 < float(ended.answer.text) <= 60


async def test_runs_see_their_own_deadlines() -> None:
    """Each of many runs at once sees its own deadline, and the caller none."""
    desk = Desk(slots=20)

    async def script(call: AgentCall) -> str:
        await after(1.0)(call)
        return str(remaining())

    timeouts = [100.0 * n for n in range(1, 20)]
    endings = await asyncio.gather(*(desk.ask(script, timeout_s=t) for t in timeouts))
    for timeout_s, ended in zip(timeouts, endings, strict=True):
        assert ended.answer is not None
        assert float(ended.answer.text) == pytest.approx(timeout_s - 1.0)
    assert remaining() == math.inf


async def test_queue_time_counts_towards_the_deadline() -> None:
    """A run that waited for its slot has that much less time left."""
    desk = Desk(slots=1)

    async def ask(_: AgentCall) -> str:
        return str(remaining())

    first = desk.start(after(20.0))
    second = desk.start(ask, timeout_s=60.0)
    ended = await second.ended
    assert ended.answer is not None
    assert float(ended.answer.text) == pytest.approx(40.0)
    await first.ended


async def test_an_hour_takes_no_time() -> None:
    """A run with a deadline of an hour times out at once, in the clock of the runner."""
    began, loop = time.monotonic(), asyncio.get_running_loop()
    arrived = loop.time()
    ended = await Desk().ask(hangs, timeout_s=3_600.0)
    assert ended.outcome is Outcome.TIMEOUT
    assert ended.duration_s == pytest.approx(3_600.0)
    assert loop.time() - arrived == pytest.approx(3_600.0)
    assert time.monotonic() - began < 1.0
