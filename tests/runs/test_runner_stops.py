"""Stopping a run: the hard deadline, the first reason, the progress that stays."""

import asyncio
import threading
import time
from contextlib import suppress

import pytest

from app.runs.errors import (
    Cancelled,
    DeadlineExceeded,
    Disconnected,
    RunError,
)
from app.runs.events import (
    IterationCounted,
    ModelCallFinished,
    RunFinished,
    ToolCallFinished,
    ToolCallStarted,
    WorkAbandoned,
)
from app.runs.model import CallOutcome, Outcome, Stopped
from app.runs.ports import AgentCall
from app.runs.runner import GRACE_S
from tests.runs import scripted, virtual_time
from tests.runs.scripted import Desk, after, at_once, hangs, loop_time, stubborn

pytestmark = pytest.mark.virtual_time

# What the loop may add to a bound of the product; and a machine that does other things.
SLACK_S, SELDOM_S = 0.02, 10.0


async def test_run_is_cancelled_at_its_deadline() -> None:
    """A run that does not end in time is cancelled at its deadline, as a timeout."""
    desk = Desk()
    began = loop_time()
    ended = await desk.ask(hangs, timeout_s=0.2)
    took_s = loop_time() - began
    assert isinstance(ended.error, DeadlineExceeded)
    assert ended.outcome is Outcome.TIMEOUT
    assert took_s == pytest.approx(0.2, abs=SLACK_S)
    assert desk.facts_of(WorkAbandoned) == []
    assert desk.idle()


async def test_run_that_swallows_its_cancellation_ends() -> None:
    """A run that swallows its cancellation ends a short grace after its deadline."""
    desk, door = Desk(slots=1), asyncio.Event()
    began = loop_time()
    run = desk.start(stubborn(door), timeout_s=0.2)
    ended = await run.ended
    assert loop_time() - began < 0.2 + GRACE_S + SLACK_S
    assert ended.outcome is Outcome.TIMEOUT
    (left,) = desk.facts_of(WorkAbandoned)
    assert (left.tasks, left.threads) == (1, 0)
    assert desk.idle(), "its place is free although its task goes on"
    assert (await desk.ask(at_once)).outcome is Outcome.COMPLETED
    door.set()
    await desk.release(run)
    assert len(desk.finals()) == 2, "the late end of the task says nothing more"


async def test_grace_is_short() -> None:
    """Work that will not stop delays an answer by a tenth of a second, as its best times show."""
    door, took_s = asyncio.Event(), list[float]()
    for _ in range(5):
        desk = Desk()
        began = loop_time()
        await desk.ask(stubborn(door), timeout_s=0.1)
        took_s.append(loop_time() - began)
    door.set()
    assert took_s == pytest.approx([0.1 + GRACE_S] * 5, abs=SLACK_S)


@pytest.mark.threads
@pytest.mark.waits
async def test_hanging_thread_is_counted() -> None:
    """A run whose thread hangs ends in time and reports exactly what it left behind."""
    desk = Desk()
    asyncio.get_running_loop().set_default_executor(desk.threads)
    door = threading.Event()

    async def script(_: AgentCall) -> str:
        loop = asyncio.get_running_loop()
        hanging = [loop.run_in_executor(None, door.wait, 60) for _ in range(3)]
        while desk.threads.busy < 3:
            pass  # they begin before the deadline can come
        await asyncio.wait(hanging)
        return "too late"

    began = time.monotonic()
    ended = await desk.ask(script, timeout_s=0.2)
    left_at_work = desk.threads.abandoned
    door.set()
    assert left_at_work == 3
    assert time.monotonic() - began < 0.2 + GRACE_S + SELDOM_S
    assert ended.outcome is Outcome.TIMEOUT
    (left,) = desk.facts_of(WorkAbandoned)
    assert (left.threads, left.tasks) == (3, 0)


async def test_answer_after_a_swallowed_cancellation_is_a_timeout() -> None:
    """An answer after the deadline, even within the grace, is too late."""

    async def script(call: AgentCall) -> str:
        try:
            await hangs(call)
        except asyncio.CancelledError:
            return "saved"
        return "never"

    assert (await Desk().ask(script, timeout_s=0.1)).outcome is Outcome.TIMEOUT


async def test_failure_in_the_clean_up_is_still_a_timeout() -> None:
    """An agent that raises while it is cancelled does not change how its run ended."""

    async def script(call: AgentCall) -> str:
        try:
            await hangs(call)
        finally:
            raise ValueError("in finally")

    desk = Desk()
    assert (await desk.ask(script, timeout_s=0.1)).outcome is Outcome.TIMEOUT
    assert len(desk.finals()) == 1


async def test_cancel_before_the_first_step_ends_once() -> None:
    """A run that is stopped before its task started ends once and frees its slot."""
    desk = Desk(slots=1)
    run = desk.start(at_once)
    desk.runner.stop(run, Cancelled())
    ended = await run.ended
    assert ended.outcome is Outcome.CANCELLED
    assert len(desk.finals(run)) == 1
    assert desk.idle()
    assert (await desk.ask(at_once)).outcome is Outcome.COMPLETED


async def test_task_cancelled_from_outside_is_a_failure() -> None:
    """A run whose task somebody else cancels ends once, as a failure."""
    desk = Desk()
    run = desk.start(hangs)
    assert run.task is not None
    run.task.cancel()
    ended = await run.ended
    assert ended.error is not None
    assert ended.error.code == "agent_failed"
    assert len(desk.finals(run)) == 1
    assert desk.idle()


@pytest.mark.parametrize("first", [Cancelled(), Disconnected(), DeadlineExceeded()])
@pytest.mark.parametrize("obeys", [True, False])
async def test_first_reason_counts(first: RunError, obeys: bool) -> None:
    """Of several reasons to stop, the first is the outcome."""
    desk, door = Desk(), asyncio.Event()
    run = await desk.working(hangs if obeys else stubborn(door))
    desk.runner.stop(run, first)
    for later in (Disconnected(), Cancelled(), DeadlineExceeded()):
        desk.runner.stop(run, later)
    assert (await run.ended).error is first
    desk.runner.stop(run, Cancelled())
    door.set()
    await desk.release(run)
    assert [final.code for final in desk.finals(run)] == [first.code]


async def test_timeout_has_the_progress() -> None:
    """A run that times out reports its finished steps, its counts and its phase."""
    desk = Desk()

    async def script(call: AgentCall) -> str:
        scripted.model_starts(call)
        scripted.model_ends(call)
        scripted.iteration(call)
        scripted.tool_starts(call, "look", "1")
        scripted.tool_ends(call, "1")
        scripted.tool_starts(call, "nap", "2")
        scripted.tool_starts(call, "dig", "3")
        return await hangs(call)

    ended = await desk.ask(script, timeout_s=0.15)
    assert (ended.iterations, ended.tool_calls) == (1, 3)
    assert [(step.tool, step.outcome) for step in ended.steps] == [
        ("look", CallOutcome.COMPLETED),
        ("nap", CallOutcome.TIMEOUT),
        ("dig", CallOutcome.TIMEOUT),
    ]
    assert str(ended.phase) == "tool:nap"
    timings = ended.timings
    spent = timings.queue_s + timings.llm_s + timings.tools_s + timings.other_s
    assert spent == pytest.approx(ended.duration_s, abs=1e-6)
    began = {fact.call_id: fact.at for fact in desk.facts_of(ToolCallStarted)}
    over = {fact.call_id: fact.at for fact in desk.facts_of(ToolCallFinished)}
    assert timings.tools_s >= over["2"] - began["2"] - 1e-6


async def test_every_call_that_started_ends() -> None:
    """A fact closes each call that is open when a run ends, before the final one."""
    desk = Desk()

    async def script(call: AgentCall) -> str:
        scripted.model_starts(call, "m1")
        scripted.tool_starts(call, "look", "t1")
        raise ValueError("x")

    await desk.ask(script)
    (model,) = desk.facts_of(ModelCallFinished)
    (tool,) = desk.facts_of(ToolCallFinished)
    assert (model.call_id, tool.call_id) == ("m1", "t1")
    assert isinstance(desk.facts[-1], RunFinished)


async def test_final_fact_is_the_last() -> None:
    """After its final fact a run emits nothing more, however long its work goes on."""
    desk = Desk()

    said_late = 0

    async def script(call: AgentCall) -> str:
        nonlocal said_late
        while said_late < 3:
            scripted.iteration(call)
            scripted.tool_starts(call)
            said_late += bool(desk.finals())
            with suppress(asyncio.CancelledError):
                await after(0.02)(call)
        return ""

    run = desk.start(script, timeout_s=0.1)
    ended = await run.ended
    await desk.release(run)
    assert said_late == 3
    assert isinstance(desk.facts[-1], RunFinished)
    assert desk.facts_of(IterationCounted), "it did say something before"
    assert run.progress.tool_calls == ended.tool_calls


@pytest.mark.parametrize(
    ("obeys", "stopped"), [(True, Stopped.CANCELLED), (False, Stopped.STILL_STOPPING)]
)
async def test_cancel_returns_what_happened(obeys: bool, stopped: Stopped) -> None:
    """Cancelling returns whether the work has stopped, still goes on, or was over."""
    desk, door = Desk(), asyncio.Event()
    run = await desk.working(hangs if obeys else stubborn(door))
    assert await desk.runner.cancel(run) is stopped
    assert run.ended.result().outcome is Outcome.CANCELLED
    if stopped is Stopped.STILL_STOPPING:
        assert await desk.runner.cancel(run) is Stopped.STILL_STOPPING
        door.set()
        await desk.release(run)
    assert await desk.runner.cancel(run) is Stopped.ALREADY_FINISHED


async def test_stopped_task_is_not_abandoned() -> None:
    """However late the loop sees it, a task that stopped is no abandoned work."""
    desk = Desk()
    run = await desk.working(hangs)
    desk.runner.stop(run, Cancelled())
    virtual_time.advance(1.5 * GRACE_S)  # the grace is over when the held loop goes on
    await run.ended
    assert desk.facts_of(WorkAbandoned) == []


async def test_cancelling_twice_at_once() -> None:
    """Two callers who cancel the same run both read that it was cancelled."""
    desk = Desk()
    run = await desk.working(hangs)
    both = await asyncio.gather(desk.runner.cancel(run), desk.runner.cancel(run))
    assert set(both) == {Stopped.CANCELLED}
