"""User code inside a run that asks the process to exit ends the run; elsewhere it still exits."""

import asyncio
import gc
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import copy_context
from typing import Any

import pytest
import pytest_asyncio

from app.runs import containment
from app.runs.containment import Contained, building, original
from app.runs.events import RunFinished
from app.runs.model import Outcome
from app.runs.ports import AgentCall
from tests.runs.scripted import Desk, at_once

Leave = Callable[[], Awaitable[Any]]


@pytest_asyncio.fixture(autouse=True)
async def contained() -> AsyncIterator[None]:
    """Exits are contained while the test runs."""
    loop = asyncio.get_running_loop()
    containment.contain(loop)
    yield
    containment.release(loop)


async def _returns() -> None:
    pass


async def exits() -> None:
    await asyncio.sleep(0)
    raise SystemExit(3)


async def interrupts() -> None:
    await asyncio.sleep(0)
    raise KeyboardInterrupt


async def exits_as_it_is_cancelled() -> None:
    task = asyncio.ensure_future(_exits_in_the_end())
    await asyncio.sleep(0)
    task.cancel()
    await task


async def _exits_in_the_end() -> None:
    try:
        await asyncio.sleep(60)
    finally:
        raise SystemExit(3)


async def on_a_thread() -> None:
    def leave() -> None:
        raise SystemExit(3)

    await asyncio.to_thread(leave)


LEAVES = (exits, interrupts, exits_as_it_is_cancelled, on_a_thread)


async def itself(leave: Leave) -> None:
    await leave()


async def in_a_task(leave: Leave) -> None:
    await asyncio.ensure_future(leave())


async def beside_others(leave: Leave) -> None:
    await asyncio.gather(leave(), asyncio.sleep(60))


async def in_a_group(leave: Leave) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(60))
        group.create_task(in_a_task(leave))


async def in_another_context(leave: Leave) -> None:
    await asyncio.create_task(in_a_task(leave), context=copy_context())


WAYS = (itself, in_a_task, beside_others, in_a_group, in_another_context)


@pytest.mark.parametrize("leave", LEAVES)
@pytest.mark.parametrize("way", WAYS)
async def test_exit_in_a_run_ends_the_run_only(
    way: Callable[[Leave], Awaitable[None]], leave: Leave
) -> None:
    """A run whose code asks the process to exit fails with that reason; the loop goes on."""

    async def script(_: AgentCall) -> str:
        await way(leave)
        return "never"

    desk = Desk()
    assert (await desk.ask(script)).outcome is Outcome.FAILED
    (end,) = desk.facts_of(RunFinished)
    assert end.code == "agent_failed"
    assert _leaf(end.error) == ("KeyboardInterrupt" if leave is interrupts else "SystemExit")
    assert (await desk.ask(at_once)).outcome is Outcome.COMPLETED
    assert desk.idle()


def _leaf(error: BaseException | None) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return type(original(error)).__name__ if error is not None else ""


async def test_except_exception_does_not_catch_the_substitute() -> None:
    """Code that catches every Exception does not catch the substitute of an exit."""
    caught: list[str] = []

    async def script(_: AgentCall) -> str:
        try:
            await in_a_task(exits)
        except Exception as raised:  # noqa: BLE001 - as a user's code does
            caught.append(type(raised).__name__)
        return "went on"

    assert (await Desk().ask(script)).outcome is Outcome.FAILED
    assert caught == []


async def test_task_cancelled_before_its_first_step_is_closed() -> None:
    """A task that is cancelled before its first step is closed: Python warns of nothing."""

    async def script(_: AgentCall) -> str:
        task = asyncio.ensure_future(exits())
        task.cancel()
        await asyncio.wait({task})
        return "went on"

    assert (await Desk().ask(script)).outcome is Outcome.COMPLETED
    gc.collect()


async def test_closed_coroutine_ends_quietly() -> None:
    """A coroutine that Python closes, since its loop is gone, ends without output."""
    made: list[Any] = []

    async def waits() -> None:
        await asyncio.sleep(60)

    def theirs(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(work)
        return asyncio.Task(asyncio.sleep(0), loop=loop, **options)

    loop = asyncio.get_running_loop()
    containment.release(loop)
    loop.set_task_factory(theirs)
    containment.contain(loop)
    context = copy_context()
    context.run(building.set, True)
    await loop.create_task(waits(), context=context)
    made[0].send(None)
    made[0].close()
    containment.release(loop)
    loop.set_task_factory(None)


async def test_task_shows_the_users_coroutine() -> None:
    """A task of a run shows the user's coroutine, not ours."""
    seen: list[str] = []

    async def script(_: AgentCall) -> str:
        task = asyncio.ensure_future(exits())
        seen.append(repr(task))
        await asyncio.wait({task})
        return repr(type(task.exception()))

    await Desk().ask(script)
    assert "coro=<exits()" in seen[0]


async def test_exit_in_a_factory_task_is_contained() -> None:
    """An exit in a task of a factory is contained as well."""
    context = copy_context()
    context.run(building.set, True)
    task = asyncio.get_running_loop().create_task(exits(), context=context)
    await asyncio.wait({task})
    assert isinstance(task.exception(), Contained)


async def test_task_factory_of_the_loop_is_restored() -> None:
    """A task factory that the loop had makes the tasks, and is restored afterwards."""
    loop = asyncio.get_running_loop()
    containment.release(loop)
    made: list[Any] = []

    def theirs(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(work)
        return asyncio.Task(work, loop=loop, **options)

    loop.set_task_factory(theirs)
    containment.contain(loop)
    containment.contain(loop)
    await asyncio.ensure_future(_returns())
    assert len(made) == 1
    containment.release(loop)
    assert loop.get_task_factory() is theirs
    loop.set_task_factory(None)


OUTSIDE = """
import asyncio
from app.runs import containment

async def leaves():
    await asyncio.sleep(0)
    raise {error}

async def main():
    containment.contain(asyncio.get_running_loop())
    {before}
    await asyncio.wait({{asyncio.ensure_future(leaves())}})
    print("contained")

asyncio.new_event_loop().run_until_complete(main())
"""
BUILDS = "containment.building.set(True)"


@pytest.mark.waits
@pytest.mark.parametrize(
    ("error", "before", "code", "printed"),
    [
        ("SystemExit(3)", "pass", 3, ""),
        ("KeyboardInterrupt", "pass", -2, ""),
        ("SystemExit(3)", BUILDS, 0, "contained\n"),
        # While Python itself raises it for the operator's Ctrl-C, it may be that.
        ("KeyboardInterrupt", BUILDS, -2, ""),
        (
            "KeyboardInterrupt",
            f"import signal; signal.signal(2, print); {BUILDS}",
            0,
            "contained\n",
        ),
    ],
)
def test_exit_outside_of_runs_ends_the_process(
    error: str, before: str, code: int, printed: str
) -> None:
    """An exit outside of runs and factories ends the process, and so does the operator's Ctrl-C."""
    program = OUTSIDE.format(error=error, before=before)
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (code, printed), ended.stderr
