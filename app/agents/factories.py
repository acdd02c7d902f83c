"""Where agents are built: each factory has a task of its own, which lives as long as the service.

What a factory opens belongs to the task that it works in: scopes and task groups of anyio, sessions
of MCP, timeouts. When one of these is cancelled or fails, it ends that task, and nothing else.
"""

import asyncio
import inspect
import threading
from collections.abc import Callable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from app.agents.mcp_sessions import end_waiting
from app.agents.startup_errors import leaves, reason
from app.runs.containment import building, original

# After this long the operator reads which factory is waited for.
_SLOW_S = 10.0
# All agents together may take this long to close what they opened, and then once more to be cut.
_CLOSE_S, _CUT_S = 5.0, 1.0

_SETTLE_S = 0.2

# Takes the name of an agent and what its factory's task ended with.
Ended: TypeAlias = Callable[[str, BaseException], None]
# Takes the name of an agent and the seconds in which its factory has given none.
Slow: TypeAlias = Callable[[str, float], None]


class FactoryFailed(Exception):
    """A factory gave no agent; the message says why."""


@dataclass(slots=True)
class _Opened:
    name: str
    task: asyncio.Task[None]
    closing: asyncio.Event


def _nobody(name: str, what: object) -> None:
    """Nobody wants to know."""


@dataclass(slots=True)
class Factories:
    """The tasks in which agents were built, in the order in which they were.

    `died` is called for one that ended while the service goes on, `not_closed` for one that fails
    as it closes, or takes too long, and `slow`, from another thread, for one that gives no agent.
    """

    limit_s: float = 300.0
    died: Ended = _nobody
    not_closed: Ended = _nobody
    slow: Slow = _nobody
    _opened: list[_Opened] = field(default_factory=list)

    async def build(self, name: str, factory: Any) -> Any:
        """Give what a factory returns or yields, or what opening a context manager gives.

        Raises FactoryFailed where that is nothing within the limit.
        """
        loop = asyncio.get_running_loop()
        built: asyncio.Future[Any] = loop.create_future()
        closing = asyncio.Event()
        context = copy_context()
        context.run(building.set, True)
        living = _live(factory, built, closing)
        task = loop.create_task(living, name=f"factory of {name}", context=context)
        # On a thread, since a factory may hold the loop.
        slow = threading.Timer(_SLOW_S, self.slow, (name, _SLOW_S))
        slow.daemon = True
        slow.start()
        try:
            await asyncio.wait({task, built}, timeout=self.limit_s, return_when="FIRST_COMPLETED")
        finally:
            slow.cancel()
            if not built.done():
                task.cancel()
        if not built.done():
            raise FactoryFailed(await self._why_not(task))
        opened = _Opened(name, task, closing)
        self._opened.append(opened)
        task.add_done_callback(lambda _: self._task_done(opened))
        return built.result()

    async def _why_not(self, task: asyncio.Task[None]) -> str:
        if not task.done():
            await asyncio.wait({task}, timeout=_CUT_S)
            return f"it gave no agent within {self.limit_s:g} s (WATCHKEEPER_FACTORY_S)"
        error = _error(task)
        return "it was cancelled by what it opened" if task.cancelled() else reason(error)

    def _task_done(self, opened: _Opened) -> None:
        if not opened.closing.is_set():
            self.died(opened.name, _error(opened.task))
            # Its other tasks need a moment to end.
            opened.task.get_loop().call_later(_SETTLE_S, end_waiting)
        elif not opened.task.cancelled() and opened.task.exception() is not None:
            self.not_closed(opened.name, _error(opened.task))

    async def close(self) -> None:
        """Close what factories opened, the last one first; what will not close in time is cut."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CLOSE_S
        unfinished: dict[asyncio.Task[None], str] = {}
        while self._opened:
            opened = self._opened.pop()
            opened.closing.set()
            await asyncio.wait({opened.task}, timeout=max(0.0, deadline - loop.time()))
            if not opened.task.done():
                unfinished[opened.task] = opened.name
        for task, name in unfinished.items():
            task.cancel()
            self.not_closed(name, TimeoutError())
        if unfinished:
            await asyncio.wait(unfinished, timeout=_CUT_S)


async def _live(factory: Any, built: "asyncio.Future[Any]", closing: asyncio.Event) -> None:
    async with AsyncExitStack() as opened:
        built.set_result(await _given(factory, opened))
        await closing.wait()


async def _given(factory: Any, opened: AsyncExitStack) -> Any:
    given = factory if is_context(factory) else factory()
    if inspect.isawaitable(given):
        given = await given
    if inspect.isasyncgen(given) or inspect.isgenerator(given):
        given = _as_context(given)
    if isinstance(given, AbstractAsyncContextManager):
        return await opened.enter_async_context(given)
    if isinstance(given, AbstractContextManager):
        return opened.enter_context(given)
    return given


def is_context(thing: Any) -> bool:
    """Whether it is a context manager, which gives an agent when it is opened."""
    return isinstance(thing, AbstractAsyncContextManager | AbstractContextManager)


def _as_context(generator: Any) -> Any:
    make: Any = asynccontextmanager if inspect.isasyncgen(generator) else contextmanager
    return make(lambda: generator)()


def _error(task: asyncio.Task[None]) -> BaseException:
    """What a task ended with; of a group, the first exception in it."""
    error = asyncio.CancelledError() if task.cancelled() else task.exception()
    return next(leaves(original(error))) if error else asyncio.CancelledError()
