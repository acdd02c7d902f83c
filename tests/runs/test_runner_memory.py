"""What an ended run leaves in memory: its numbers, and no objects of its agent."""

import asyncio
import gc
import weakref
from contextvars import ContextVar

import pytest

from app.runs.errors import AgentFailed
from app.runs.model import Mode
from app.runs.ports import AgentCall
from tests.runs.scripted import Desk, Script, after, at_once, hangs, raises, stubborn

pytestmark = pytest.mark.virtual_time


class Payload:
    """Something large that an agent holds while it works."""


held: ContextVar[list[weakref.ref[Payload]]] = ContextVar("held")
door: ContextVar[asyncio.Event] = ContextVar("door")


def holding() -> Payload:
    """A payload for one frame; the test knows when it is freed."""
    payload = Payload()
    held.get().append(weakref.ref(payload))
    return payload


async def answering(_: AgentCall) -> str:
    """Answer, holding something."""
    return f"{holding()!r}"


async def hanging(call: AgentCall) -> str:
    """Be cancelled, holding something."""
    mine = holding()
    await hangs(call)
    return f"{mine!r}"


async def raising(_: AgentCall) -> str:
    """Raise from a frame that holds something."""
    mine = holding()
    raise ValueError(mine)


async def failing(call: AgentCall) -> str:
    """Fail as adapters do: an error of the core, raised from what foreign code raised."""
    try:
        return await raising(call)
    except ValueError as raised:
        raise AgentFailed from raised


async def late(call: AgentCall) -> str:
    """Swallow the cancellation and raise after the run has ended."""
    mine = holding()
    await stubborn(door.get())(call)
    raise ValueError(mine)


@pytest.mark.parametrize("script", [answering, hanging, raising, failing, late])
async def test_finished_run_keeps_no_object_alive(script: Script) -> None:
    """A finished run in the history holds no task, no frame and no object of its agent."""
    payloads: list[weakref.ref[Payload]] = []
    held.set(payloads)
    door.set(asyncio.Event())
    desk = Desk()
    run = desk.start(script, timeout_s=0.05)
    await run.ended
    door.get().set()
    await desk.release(run)
    await desk.tasks_over()
    desk.facts.clear()
    gc.collect()
    found = desk.runner.find(run.id)
    assert found is not None
    assert found.task is None
    assert found.timers == []
    assert payloads, "the script never ran"
    assert [payload() for payload in payloads] == [None]


async def test_task_that_goes_on_stays_known() -> None:
    """While the task of a finished run goes on, the runner still knows it."""
    desk, gate = Desk(), asyncio.Event()
    run = desk.start(stubborn(gate), timeout_s=0.05)
    await run.ended
    assert desk.runner.stuck_tasks == 1
    assert desk.runner.is_stuck(run)
    gate.set()
    await desk.release(run)
    assert not desk.runner.is_stuck(run)


async def test_a_reader_keeps_what_the_archive_drops() -> None:
    """The archive drops answers and events; a reader that had the run before still has them."""
    desk = Desk(keep=1_000)
    sync, streamed = desk.start(at_once), desk.start(at_once, mode=Mode.STREAM)
    await streamed.ended
    for _ in range(120):  # more than stay resumable
        await desk.start(at_once).ended
    for run in (sync, streamed):
        ended = run.ended.result()
        assert ended.answer is not None
        assert ended.answer.text == "answer to q"
        assert run.ring.last_id > 0
        found = desk.runner.find(run.id)
        assert found is not None
        assert found.ended.result().answer is None
        assert found.ring.closed
        assert found.ring.last_id == 0


async def test_history_is_bounded() -> None:
    """The oldest finished run leaves the history when there are too many."""
    desk = Desk(keep=3)
    runs = [desk.start(at_once) for _ in range(1)]
    for _ in range(4):
        await runs[-1].ended
        runs.append(desk.start(at_once))
    await runs[-1].ended
    found = [desk.runner.find(run.id) is not None for run in runs]
    assert found == [False, False, True, True, True]
    assert len(desk.runner.finished) == 3


async def test_run_ends_without_a_history() -> None:
    """Without a history a run still ends and answers."""
    desk = Desk(keep=0)
    run = desk.start(at_once)
    ended = await run.ended
    assert ended.answer is not None
    assert desk.runner.find(run.id) is None


async def test_thousand_runs_leave_no_task() -> None:
    """However runs end, none of their tasks and timers stays on the loop."""
    desk = Desk(slots=50, queue=1000, keep=10)
    before = asyncio.all_tasks()
    scripts = [at_once, raises(ValueError()), after(0.001), hangs]
    runs = [desk.start(scripts[n % 4], timeout_s=0.3) for n in range(1000)]
    await asyncio.gather(*(run.ended for run in runs))
    assert await desk.tasks_over() == before
    assert desk.idle()
    assert not [r for r in runs if r.timers or r.task]
