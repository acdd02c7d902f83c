"""Keeps code of users from ending the process: an exit ends the work that asked for it.

asyncio raises SystemExit and KeyboardInterrupt out of the loop when a task ends with one, which
stops everything that the loop serves. Tasks of a run, and those of a factory of agents, end with
`Contained` instead. An operator's signal is handled elsewhere, and not by such a task.
"""

import asyncio
import inspect
import signal
from contextvars import Context, ContextVar
from typing import Any

from app.runs.deadline import current

# Set where code of users works for no run: in factories, and in what these start.
building: ContextVar[bool] = ContextVar("watchkeeper_building", default=False)


# GeneratorExit has a meaning of its own to the generators that it passes: they take it for a close.
_EXITS = (SystemExit, KeyboardInterrupt, GeneratorExit)


class Contained(BaseException):
    """Stands for the exit that is its cause: what was raised to end more than one task.

    It is no Exception: what the user's code lets pass of the one, it lets pass of the other.
    """


def contain(loop: asyncio.AbstractEventLoop) -> None:
    """From now on no task of a run or a factory can stop this loop."""
    former = loop.get_task_factory()
    if not isinstance(former, _Tasks):
        loop.set_task_factory(_Tasks(former))


def release(loop: asyncio.AbstractEventLoop) -> None:
    """Undo `contain`."""
    installed = loop.get_task_factory()
    if isinstance(installed, _Tasks):
        loop.set_task_factory(installed.former)


def original(error: BaseException) -> BaseException:
    """What was raised, of an error that may stand for it."""
    return error.__cause__ or error if isinstance(error, Contained) else error


class _Tasks:
    """Makes the tasks of a loop, in the way in which they were made before."""

    def __init__(self, former: Any) -> None:
        self.former = former

    def __call__(
        self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any
    ) -> "asyncio.Future[Any]":
        make: Any = self.former or _task
        if not _is_users(options.get("context")):
            made: asyncio.Future[Any] = make(loop, work, **options)
            return made
        held = _Work(work)
        made = make(loop, _contained(held), **options)
        # One that is cancelled before it begins is closed now: the collector would complain of it.
        made.add_done_callback(held.close_unbegun)
        return made


def _task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> "asyncio.Task[Any]":
    return asyncio.Task(work, loop=loop, **options)


def _is_users(context: Context | None) -> bool:
    """Whether a task that is made now, in that context or in the present one, works for a user."""
    if context is None:
        return current.get() is not None or building.get()
    return context.get(current) is not None or context.get(building, False)


class _Work:
    """A coroutine that is closed also where its task is cancelled before it begins."""

    __slots__ = ("coroutine",)

    def __init__(self, coroutine: Any) -> None:
        self.coroutine = coroutine

    def close_unbegun(self, ended: "asyncio.Future[Any]") -> None:
        """Close it where its task was cancelled before it began."""
        cut = ended.cancelled() and inspect.iscoroutine(self.coroutine)
        if cut and inspect.getcoroutinestate(self.coroutine) == inspect.CORO_CREATED:
            self.coroutine.close()

    def __del__(self) -> None:
        self.coroutine.close()


def _contained(held: _Work) -> Any:
    """A coroutine that ends with `Contained` where it would have ended the loop."""
    coroutine = held.coroutine
    contained: Any = _awaited(held)
    # Libraries and people that look at the task see the name of what works in it.
    contained.__name__ = getattr(coroutine, "__name__", contained.__name__)
    contained.__qualname__ = getattr(coroutine, "__qualname__", contained.__qualname__)
    return contained


async def _awaited(work: _Work) -> Any:
    try:
        return await work.coroutine
    except _EXITS as raised:
        if _is_operators(raised) or _closes(raised):
            raise
        raise Contained from raised


def _closes(raised: BaseException) -> bool:
    """Whether Python closes the coroutine: that is raised here, and not by the work."""
    trace = raised.__traceback__
    return isinstance(raised, GeneratorExit) and (trace is None or trace.tb_next is None)


def _is_operators(raised: BaseException) -> bool:
    """While agents are built, Python raises KeyboardInterrupt for a Ctrl-C, wherever it is."""
    python_interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(raised, KeyboardInterrupt) and building.get() and python_interrupts
