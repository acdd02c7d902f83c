"""Contains exits of user code: an exit ends only the task that raised it, not the process.

If a task raises SystemExit or KeyboardInterrupt, asyncio raises it out of the loop, which stops
the whole service. Tasks of runs and of agent factories end with `Contained` instead. Signals of
an operator do not pass through these tasks.
"""

import asyncio
import inspect
import signal
from contextvars import Context, ContextVar
from typing import Any

from app.runs.deadline import current

# True while user code executes outside a run: in factories, and in tasks that these start.
building: ContextVar[bool] = ContextVar("watchkeeper_building", default=False)


# A GeneratorExit from user code would look like a close to the generators that it passes.
_EXITS = (SystemExit, KeyboardInterrupt, GeneratorExit)


class Contained(BaseException):
    """Replaces an exit, which is its `__cause__`.

    Like the exit it is no Exception, so that `except Exception` in user code does not catch it.
    """


def contain(loop: asyncio.AbstractEventLoop) -> None:
    """Contain the exits of all tasks of runs and factories that this loop creates from now on."""
    former = loop.get_task_factory()
    if not isinstance(former, _Tasks):
        loop.set_task_factory(_Tasks(former))


def release(loop: asyncio.AbstractEventLoop) -> None:
    """Undo `contain`."""
    installed = loop.get_task_factory()
    if isinstance(installed, _Tasks):
        loop.set_task_factory(installed.former)


def original(error: BaseException) -> BaseException:
    """The exit behind a `Contained`; any other error unchanged."""
    return error.__cause__ or error if isinstance(error, Contained) else error


class _Tasks:
    """A task factory that contains user code; the former factory creates the tasks."""

    def __init__(self, former: Any) -> None:
        self.former = former

    def __call__(
        self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any
    ) -> "asyncio.Future[Any]":
        create: Any = self.former or _task
        if not _is_user_code(options.get("context")):
            task: asyncio.Future[Any] = create(loop, work, **options)
            return task
        wrapped = _Work(work)
        task = create(loop, _contained(wrapped), **options)
        # Python warns about a coroutine that is collected before it has started.
        task.add_done_callback(wrapped.close_if_unstarted)
        return task


def _task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> "asyncio.Task[Any]":
    return asyncio.Task(work, loop=loop, **options)


def _is_user_code(context: Context | None) -> bool:
    """Whether a task with this context, or the present one, belongs to a run or a factory."""
    if context is None:
        return current.get() is not None or building.get()
    return context.get(current) is not None or context.get(building, False)


class _Work:
    """A coroutine that is also closed if its task is cancelled before it starts."""

    __slots__ = ("coroutine",)

    def __init__(self, coroutine: Any) -> None:
        self.coroutine = coroutine

    def close_if_unstarted(self, task: "asyncio.Future[Any]") -> None:
        """Close the coroutine if its task was cancelled before it started."""
        cancelled = task.cancelled() and inspect.iscoroutine(self.coroutine)
        if cancelled and inspect.getcoroutinestate(self.coroutine) == inspect.CORO_CREATED:
            self.coroutine.close()

    def __del__(self) -> None:
        self.coroutine.close()


def _contained(work: _Work) -> Any:
    """A coroutine that raises `Contained` instead of an exit."""
    coroutine = work.coroutine
    contained: Any = _awaited(work)
    # Task dumps show the name of the user's coroutine.
    contained.__name__ = getattr(coroutine, "__name__", contained.__name__)
    contained.__qualname__ = getattr(coroutine, "__qualname__", contained.__qualname__)
    return contained


async def _awaited(work: _Work) -> Any:
    try:
        return await work.coroutine
    except _EXITS as raised:
        if _is_from_operator(raised) or _is_close(raised):
            raise
        raise Contained from raised


def _is_close(raised: BaseException) -> bool:
    """Whether Python closes the wrapper itself, and no user code raised this."""
    trace = raised.__traceback__
    return isinstance(raised, GeneratorExit) and (trace is None or trace.tb_next is None)


def _is_from_operator(raised: BaseException) -> bool:
    """While agents are built, Python raises KeyboardInterrupt for Ctrl-C in whatever code runs."""
    python_interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(raised, KeyboardInterrupt) and building.get() and python_interrupts
