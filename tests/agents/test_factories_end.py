"""How the resources of factories end: closed in order at the end, or dead before, alone."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest

from app.runs import containment
from tests.agents.recorded_factories import Reports, fails, named, plain
from tests.service import until


async def test_factories_close_in_reverse_order() -> None:
    """Factories close in the opposite order."""
    reports, log = Reports(), list[str]()
    for name in "abc":
        await reports.factories.build(name, named(name, log))
    await reports.factories.close()
    assert log == ["open a", "open b", "open c", "close c", "close b", "close a"]


@pytest.mark.parametrize(
    "error", [OSError("gone"), SystemExit(1), ExceptionGroup("g", [OSError()])]
)
async def test_failing_close_is_named(error: BaseException) -> None:
    """A factory that fails as it closes is named, and the others are still closed."""
    containment.contain(asyncio.get_running_loop())
    reports, log = Reports(), list[str]()
    for name in "abc":
        await reports.factories.build(name, named(name, log, error if name == "b" else None))
    await reports.factories.close()
    assert log[3:] == ["close c", "close b", "close a"]
    kind = "SystemExit" if isinstance(error, SystemExit) else "OSError"
    assert reports.not_closed == [("b", kind)]
    assert reports.died == []
    containment.release(asyncio.get_running_loop())


@pytest.mark.waits
async def test_slow_close_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A factory that does not close in time is cut and named; the end waits no longer for it."""
    monkeypatch.setattr("app.agents.factories._CLOSE_S", 0.05)
    reports, log = Reports(), list[str]()

    @asynccontextmanager
    async def hangs() -> AsyncIterator[str]:
        yield "agent"
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            log.append("cut")
            raise

    await reports.factories.build("first", named("first", log))
    await reports.factories.build("hangs", hangs)
    await reports.factories.close()
    assert reports.not_closed == [("hangs", "TimeoutError")]
    assert log == ["open first", "close first", "cut"]


async def leaves_a_timeout() -> str:
    """Opens a timeout that nobody leaves."""
    await asyncio.timeout(0.05).__aenter__()
    return "agent"


async def leaves_a_scope() -> str:
    anyio.CancelScope(deadline=anyio.current_time() + 0.05).__enter__()
    return "agent"


async def leaves_a_group() -> str:
    group = anyio.create_task_group()
    await group.__aenter__()
    group.start_soon(fails)
    return "agent"


async def leaves_asyncios_group() -> str:
    group = asyncio.TaskGroup()
    await group.__aenter__()
    group.create_task(fails())
    return "agent"


@asynccontextmanager
async def group_that_fails() -> AsyncIterator[str]:
    async with anyio.create_task_group() as group:
        group.start_soon(fails)
        yield "agent"


@asynccontextmanager
async def ends_quietly() -> AsyncIterator[str]:
    with suppress(asyncio.CancelledError):
        async with asyncio.timeout(0.02):
            yield "agent"


@pytest.mark.parametrize(
    ("factory", "kind"),
    [
        (leaves_a_timeout, "CancelledError"),
        (leaves_a_scope, "CancelledError"),
        (leaves_a_group, "CancelledError"),
        (leaves_asyncios_group, "CancelledError"),
        (group_that_fails, "OSError"),
        (ends_quietly, "TimeoutError"),
    ],
)
async def test_failing_resource_ends_its_factory(factory: Any, kind: str) -> None:
    """A failing resource ends its factory's own task, which is reported once."""
    reports = Reports()
    other = await reports.factories.build("other", plain)
    await reports.factories.build("a", factory)
    await until(lambda: reports.died)
    assert reports.died == [("a", kind)]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert other == "agent"
    await reports.factories.close()
    assert (reports.died, reports.not_closed) == ([("a", kind)], [])


@pytest.mark.waits
async def test_open_scope_of_a_dead_task_is_cancelled_once() -> None:
    """A scope whose task is gone is not cancelled over and over."""
    reports = Reports()
    await reports.factories.build("a", leaves_a_group)
    await until(lambda: reports.died)
    began_s = time.process_time()
    await asyncio.sleep(0.5)
    assert time.process_time() - began_s < 0.25


async def test_shared_client_is_reported_for_its_opener() -> None:
    """The end of a shared client is reported for the factory that opened it."""
    reports, shared = Reports(), dict[str, Any]()

    @asynccontextmanager
    async def opens() -> AsyncIterator[str]:
        async with anyio.create_task_group() as shared["group"]:
            yield "first"

    async def uses() -> str:
        shared["group"].start_soon(fails)
        return "second"

    await reports.factories.build("opens", opens)
    await reports.factories.build("uses", uses)
    await until(lambda: reports.died)
    assert reports.died == [("opens", "OSError")]
    await reports.factories.close()
