"""Executes stored runs: each attempt is a run like any other, and `Log` stores its events.

`Log` writes the events in rows, a few times a second and before each tool call. The store accepts
a row only from the run's owner. A process that no longer owns a run therefore stops it before the
next tool call.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from app.runs.deadline import remaining
from app.runs.ending import as_not_storable
from app.runs.errors import (
    Cancelled,
    DeadlineExceeded,
    HandedOver,
    NotStorable,
    RunError,
    StoreUnavailable,
)
from app.runs.live import Ended, Run
from app.runs.locks import Render
from app.runs.ports import Agent, Attempt
from app.runs.retries import retry_until_available
from app.runs.runner import Runner
from app.runs.tasks import AttemptStart, Body, Result

_FLUSH_S = 0.1
# The longest time for which a check of ownership blocks the service's loop.
_BLOCKING_S = 2.0
_REPORT_ATTEMPTS = 20
_LAST = ("error", "end")  # readers render these from the stored result


class Background:
    """Executes background runs in this process; the engine calls `execute` for each attempt."""

    def __init__(
        self,
        runner: Runner,
        agents: Callable[[], Mapping[str, Agent]],
        render: Render,
    ) -> None:
        self._runner = runner
        self._agents = agents
        self._render = render

    async def execute(self, attempt: Attempt) -> None:
        """Execute one attempt, and store its end.

        Raises HandedOver if this process no longer owns the run, Cancelled if it was cancelled.
        """
        start = attempt.start
        if self._runner.draining:  # it started slowly, and the process hands its runs over
            raise HandedOver
        await self._stop_former(start)
        log = Log(attempt, lambda reason: self._runner.stop(run, reason))
        run = self._runner.execute(self._agents()[start.agent], start, log)
        log.open(run)
        writing = asyncio.create_task(log.write_until_stopped(), name=f"log of {run.id}")
        try:
            ended = await asyncio.shield(run.ended)
        finally:
            writing.cancel()
        await run.conversation_written()  # the thread is free once the end is stored
        if isinstance(ended.error, Cancelled):
            await self._report_stop(attempt, run, self._render(run, ended))
        if isinstance(ended.error, Cancelled | HandedOver):
            raise ended.error
        await log.finish(
            self._result(run, ended), lambda: self._result(run, as_not_storable(ended))
        )

    def _result(self, run: Run, ended: Ended) -> Result:
        return Result(ended.outcome, self._render(run, ended))

    async def _stop_former(self, start: AttemptStart) -> None:
        """Stop an earlier attempt in this process: its claim has been replaced.

        Waits for its end, until the deadline of the run at most. This attempt then ends with that
        deadline. Raises HandedOver if a later attempt executes here.
        """
        while (former := self._runner.in_flight.get(start.task_id)) is not None:
            if former.attempt is not None and former.attempt.number > start.number:
                raise HandedOver
            self._runner.stop(former, HandedOver())
            remaining_s = self._runner.deadline_of(start) - self._runner.clock.monotonic()
            await asyncio.wait({former.ended}, timeout=max(0.0, remaining_s))
            if not former.ended.done():
                return

    async def _report_stop(self, attempt: Attempt, run: Run, body: Body) -> None:
        """Store how the cancelled run ended. The store already has the cancellation."""
        stuck = self._runner.is_stuck(run)
        with suppress(StoreUnavailable):  # a DELETE then returns `still_stopping`
            await retry_until_available(
                lambda: attempt.report_stop(body, stuck=stuck), attempts=_REPORT_ATTEMPTS
            )

    def stop(self, task_id: str, claim_token: str, cancelled: bool) -> None:
        """Stop an attempt of this process: it was cancelled, or another process owns the run."""
        run = self._runner.in_flight.get(task_id)
        if run is not None and run.attempt is not None and run.attempt.claim_token == claim_token:
            self._runner.stop(run, Cancelled() if cancelled else HandedOver())


class Log:
    """Writes the events of one attempt to the store, in order. It is the `Fence` of the run too."""

    def __init__(self, attempt: Attempt, stop_run: Callable[[RunError], None]) -> None:
        self.claim_token = attempt.start.claim_token
        self._attempt = attempt
        self._stop_run = stop_run
        self._loop = asyncio.get_running_loop()
        # Not the context of the run, whose deadline would end the wait for a row that is stored.
        self._context = copy_context()
        self._writing: asyncio.Task[bool | RunError | StoreUnavailable] | None = None
        # Counts of what is stored, over all attempts. `_written` is an id in this attempt's ring.
        self._rows = len(attempt.start.log)
        self._events = sum(len(row["events"]) for row in attempt.start.log)
        self._written = 0
        self._steps = 0
        self._is_refused = False
        self._run: Run | None = None

    def open(self, run: Run) -> None:
        """Start with this run; the steps of earlier attempts are stored already."""
        self._run = run
        self._steps = len(run.progress.steps)

    async def write_until_stopped(self) -> None:
        """Write new events, a few times a second, until the store refuses or this is cancelled."""
        assert self._run is not None
        with suppress(Cancelled, HandedOver, NotStorable):
            while True:
                await self._run.ring.changed(self._written, 15.0)
                await self._until_stored(self._write)
                await asyncio.sleep(_FLUSH_S)

    async def confirm_owned(self) -> None:
        """Return once all events are stored and the store confirms that we own the run.

        Otherwise stops the run and raises the reason: Cancelled, HandedOver, or NotStorable if the
        store refuses the content of an event.
        """
        await self._until_stored(self._write_or_check)

    def confirm_owned_in_thread(self) -> None:
        """The same for sync code. Blocks.

        On the service's own loop, which it blocks, it waits for the store for _BLOCKING_S at most,
        and does not store events first. If the store has not answered by then, the run is handed
        over: only its owner may act.
        """
        if _running_loop() is self._loop:
            self._confirm_owned_blocking()
            return
        remaining_s = remaining()
        confirming = asyncio.run_coroutine_threadsafe(self.confirm_owned(), self._loop)
        try:
            confirming.result(None if math.isinf(remaining_s) else remaining_s)
        finally:
            confirming.cancel()  # else it would retry until the store is available

    def _confirm_owned_blocking(self) -> None:
        try:
            self._attempt.check_blocking(min(_BLOCKING_S, remaining()))
        except (Cancelled, HandedOver) as refused:
            self._stop_run(refused)
            raise
        except StoreUnavailable as unconfirmed:
            refusal = HandedOver() if remaining() else DeadlineExceeded()
            self._stop_run(refusal)
            raise refusal from unconfirmed

    async def finish(self, result: Result, without_content: Callable[[], Result]) -> None:
        """Store the result with the last events, which the log loses if the store refuses them.

        A result that the store refuses is replaced by the one `without_content`. Raises HandedOver
        if another process owns the run, Cancelled if it was cancelled before.
        """
        if self._writing is not None:
            await asyncio.wait({self._writing})
        row, _ = self._next_row()
        try:
            await self._end(result, row)
        except NotStorable:
            with suppress(NotStorable):  # the row may be stored alone, for another attempt
                await self._until_stored(self._write)
            try:
                await self._end(result, None)
            except NotStorable:
                await self._end(without_content(), None)

    async def _end(self, result: Result, row: Mapping[str, Any] | None) -> None:
        await retry_until_available(lambda: self._attempt.end(result, self._rows, row))

    async def _until_stored(self, work: Callable[[], Awaitable[object]]) -> None:
        """Retry while the store is unavailable. Stop the run if the store refuses.

        A refusal is final: cancelled, owned by another process, or not storable.
        """
        try:
            await retry_until_available(work)
        except (Cancelled, HandedOver, NotStorable) as refused:
            self._stop_run(refused)
            raise

    async def _write_or_check(self) -> bool:
        return await self._write() or await self._check()

    async def _check(self) -> bool:
        await self._attempt.check()
        return True

    async def _write(self) -> bool:
        """Write a row; false if nothing was new. The write goes on if the caller is cancelled."""
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(
                self._write_row(), name="row of a log", context=self._context
            )
        else:
            await asyncio.wait({self._writing})  # that row lacks the newest events
            return await self._write()
        written = await asyncio.shield(self._writing)
        if isinstance(written, bool):
            return written
        raise written

    async def _write_row(self) -> bool | RunError | StoreUnavailable:
        """Return a refusal instead of raising it: a cancelled caller would not retrieve it."""
        row, last = self._next_row()
        if row is None:
            return False
        try:
            await self._attempt.write(self._rows, row)
        except (Cancelled, HandedOver, NotStorable, StoreUnavailable) as refused:
            self._is_refused = isinstance(refused, NotStorable)
            return refused
        self._rows += 1
        self._events += len(row["events"])
        self._written = last
        self._steps += len(row["progress"]["steps"])
        return True

    def _next_row(self) -> tuple[dict[str, Any] | None, int]:
        """Return the events that are not stored as a row, and the id of the last one."""
        run = self._run
        assert run is not None
        entries = [e for e in run.ring.since(self._written) if e.name not in _LAST]
        if not entries or self._is_refused:
            return None, self._written
        row: dict[str, Any] = {
            "events": [[entry.name, dict(entry.data)] for entry in entries],
            "first": self._events + 1,  # the number of its first event
            "progress": run.snapshot(self._steps),
        }
        if self._written == 0:
            row["trace"] = run.trace
        return row, entries[-1].id


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop of this thread; None on a thread without one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
