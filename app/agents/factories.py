"""Builds agents: each factory runs in its own task, which lives as long as the service.

A factory opens scopes and task groups of anyio, MCP sessions and timeouts. These belong to its
task. If one of them is cancelled or fails, only that task ends.
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

from app.agents.mcp_sessions import fail_pending_requests
from app.agents.startup_errors import describe, leaves
from app.runs.containment import building, original

# After this time the log names the slow factory.
_SLOW_S = 10.0
# Time for all factories to close, and then for the cancelled ones to end.
_CLOSE_S, _CUT_S = 5.0, 1.0

_SETTLE_S = 0.2

# Receives the name of an agent and the exception that ended its factory's task.
OnEnded: TypeAlias = Callable[[str, BaseException], None]
# Receives the name of an agent and the seconds for which its factory has been running.
OnSlow: TypeAlias = Callable[[str, float], None]


class FactoryFailed(Exception):
    """A factory returned no agent; the message gives the reason."""


@dataclass(slots=True)
class _Opened:
    name: str
    task: asyncio.Task[None]
    closing: asyncio.Event


def _ignore(name: str, detail: object) -> None:
    """Report nothing."""


@dataclass(slots=True)
class Factories:
    """The tasks of the factories, in order of creation.

    `died` reports a task that ended while the service runs. `not_closed` reports one that failed
    or timed out on close. `slow` reports, from another thread, a factory that is still building.
    """

    limit_s: float = 300.0
    died: OnEnded = _ignore
    not_closed: OnEnded = _ignore
    slow: OnSlow = _ignore
    _opened: list[_Opened] = field(default_factory=list)

    async def build(self, name: str, factory: Any) -> Any:
        """Return the agent that a factory returns or yields, or that a context manager opens.

        Raises FactoryFailed if there is none within the limit.
        """
        loop = asyncio.get_running_loop()
        built: asyncio.Future[Any] = loop.create_future()
        closing = asyncio.Event()
        context = copy_context()
        context.run(building.set, True)
        body = _keep_open(factory, built, closing)
        task = loop.create_task(body, name=f"factory of {name}", context=context)
        # On a thread, since a factory may block the loop.
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
            raise FactoryFailed(await self._failure_reason(task))
        opened = _Opened(name, task, closing)
        self._opened.append(opened)
        task.add_done_callback(lambda _: self._task_done(opened))
        return built.result()

    async def _failure_reason(self, task: asyncio.Task[None]) -> str:
        if not task.done():
            await asyncio.wait({task}, timeout=_CUT_S)
            return f"it returned no agent within {self.limit_s:g} s (WATCHKEEPER_FACTORY_S)"
        error = _error(task)
        return "it was cancelled by what it opened" if task.cancelled() else describe(error)

    def _task_done(self, opened: _Opened) -> None:
        if not opened.closing.is_set():
            self.died(opened.name, _error(opened.task))
            # Its other tasks need a moment to end first.
            opened.task.get_loop().call_later(_SETTLE_S, fail_pending_requests)
        elif not opened.task.cancelled() and opened.task.exception() is not None:
            self.not_closed(opened.name, _error(opened.task))

    async def close(self) -> None:
        """Close what factories opened, last one first. Cancel what does not close in time."""
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


async def _keep_open(factory: Any, built: "asyncio.Future[Any]", closing: asyncio.Event) -> None:
    async with AsyncExitStack() as opened:
        built.set_result(await _built_agent(factory, opened))
        await closing.wait()


async def _built_agent(factory: Any, opened: AsyncExitStack) -> Any:
    agent = factory if is_context(factory) else factory()
    if inspect.isawaitable(agent):
        agent = await agent
    if inspect.isasyncgen(agent) or inspect.isgenerator(agent):
        agent = _as_context(agent)
    if isinstance(agent, AbstractAsyncContextManager):
        return await opened.enter_async_context(agent)
    if isinstance(agent, AbstractContextManager):
        return opened.enter_context(agent)
    return agent


def is_context(thing: Any) -> bool:
    """Whether it is a context manager, which returns an agent on entry."""
    return isinstance(thing, AbstractAsyncContextManager | AbstractContextManager)


def _as_context(generator: Any) -> Any:
    make: Any = asynccontextmanager if inspect.isasyncgen(generator) else contextmanager
    return make(lambda: generator)()


def _error(task: asyncio.Task[None]) -> BaseException:
    """Return the exception that ended a task; of a group, its first exception."""
    error = asyncio.CancelledError() if task.cancelled() else task.exception()
    return next(leaves(original(error))) if error else asyncio.CancelledError()
