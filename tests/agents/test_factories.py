"""Factories of agents: a task of its own owns what each opens, and closes it in order."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import anyio
import pytest

from app.agents.factories import FactoryFailed
from app.runs import containment
from tests.agents.recorded_factories import Reports, named, plain
from tests.service import until


async def asynchronous() -> str:
    await asyncio.sleep(0)
    return "agent"


@contextmanager
def context(log: list[str] | None = None) -> Iterator[str]:
    yield from generator(log)


def generator(log: list[str] | None = None) -> Iterator[str]:
    yield "agent"
    if log is not None:
        log.append("closed")


async def async_generator(log: list[str] | None = None) -> AsyncIterator[str]:
    await asyncio.sleep(0)
    yield "agent"
    await asyncio.sleep(0)
    if log is not None:
        log.append("closed")


async_context = asynccontextmanager(async_generator)


async def gives_a_context(log: list[str] | None = None) -> Any:
    return async_context(log)


CLOSED = (context, generator, async_context, async_generator, gives_a_context)


@pytest.mark.parametrize("factory", [plain, asynchronous, *CLOSED, async_context()])
async def test_every_form_of_factory_makes_an_agent(factory: Any) -> None:
    """Functions, context managers and generators make an agent, sync or async."""
    reports = Reports()
    assert await reports.factories.build("a", factory) == "agent"
    await reports.factories.close()
    assert reports.died == reports.not_closed == []


@pytest.mark.parametrize("factory", CLOSED)
async def test_factory_is_closed_when_the_service_ends(factory: Any) -> None:
    """The code after the yield executes when the service ends, and not before."""
    reports, log = Reports(), list[str]()
    await reports.factories.build("a", partial(factory, log))
    await asyncio.sleep(0)
    assert log == []
    await reports.factories.close()
    assert log == ["closed"]


async def broken() -> str:
    raise ExceptionGroup("many", [ExceptionGroup("more", [OSError("no database")])])


async def exits() -> str:
    raise SystemExit("use --help")


async def exits_in_a_task() -> str:
    await asyncio.create_task(exits())
    return "never"


async def cancels_itself() -> str:
    anyio.CancelScope(deadline=anyio.current_time()).__enter__()
    await asyncio.sleep(60)
    return "never"


def raises() -> str:
    raise ValueError("two\n  lines")


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        (broken, "OSError: no database"),
        (exits, "SystemExit: use --help"),
        (exits_in_a_task, "SystemExit: use --help"),
        (raises, "ValueError: two lines"),
        (cancels_itself, "it was cancelled by what it opened"),
    ],
)
async def test_failing_factory_gives_its_reason(factory: Any, why: str) -> None:
    """A factory that makes no agent reports the reason in one line and leaves nothing open."""
    containment.contain(asyncio.get_running_loop())
    reports = Reports()
    with pytest.raises(FactoryFailed) as failed:
        await reports.factories.build("a", factory)
    assert str(failed.value).startswith(why)
    assert "\n" not in str(failed.value)
    await reports.factories.close()
    assert reports.died == reports.not_closed == []
    containment.release(asyncio.get_running_loop())


async def test_context_manager_that_fails_is_closed() -> None:
    """A context manager that fails as it opens has closed what it had opened."""
    log: list[str] = []

    @asynccontextmanager
    async def opens_two() -> AsyncIterator[str]:
        async with named("inner", log)():
            raise OSError("the second one")
        yield "never"

    with pytest.raises(FactoryFailed, match="OSError: the second one"):
        await Reports().factories.build("a", opens_two)
    assert log == ["open inner"]


@pytest.mark.waits
async def test_factory_that_never_returns_is_cancelled() -> None:
    """A factory that makes no agent in time is cancelled, and the setting is named."""
    cancelled = asyncio.Event()

    async def never() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    with pytest.raises(FactoryFailed, match=r"no agent within 0\.05 s \(WATCHKEEPER_FACTORY_S\)"):
        await Reports(0.05).factories.build("a", never)
    assert cancelled.is_set()


@pytest.mark.parametrize("blocks", [False, True])
async def test_slow_factory_is_named_in_the_log(
    monkeypatch: pytest.MonkeyPatch, blocks: bool
) -> None:
    """The log names the factory that the start waits for, even if it blocks the loop."""
    monkeypatch.setattr("app.agents.factories._SLOW_S", 0.05)
    reports, named_it = Reports(), threading.Event()

    def is_slow(name: str, waited_s: float) -> None:
        reports.slow.append(name)
        named_it.set()

    reports.factories.slow = is_slow

    async def slow() -> str:
        await asyncio.to_thread(named_it.wait, 30)
        return "agent"

    def blocking() -> str:
        named_it.wait(30)
        return "agent"

    await reports.factories.build("a", blocking if blocks else slow)
    assert reports.slow == ["a"]
    await reports.factories.build("b", plain)
    assert reports.slow == ["a"]


async def test_background_task_of_a_factory_goes_on() -> None:
    """A background task of a factory lives as long as the service."""
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.001)

    async def factory() -> Any:
        return asyncio.create_task(beat())

    task = await Reports().factories.build("a", factory)
    await until(lambda: beats > 3)
    task.cancel()
