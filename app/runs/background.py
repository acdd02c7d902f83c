"""Works stored runs: each attempt is a run like any other, whose reader writes its log.

What the run says goes to the log in rows, a few times a second and before each tool call. A row
is written only while the run is still this process's, so writing is the fence as well: a process
that lost a run learns of it before it does anything that others would see.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from app.runs import ending
from app.runs.deadline import remaining
from app.runs.errors import Cancelled, HandedOver, NotStorable, RunError, StoreUnavailable
from app.runs.live import Run
from app.runs.locks import Render
from app.runs.model import Outcome
from app.runs.ports import Agent
from app.runs.runner import Runner
from app.runs.tasks import Attempt, Body, Result

_FLUSH_S = 0.1
_AGAIN_S = 0.5
_REPORT_ATTEMPTS = 20
_LAST = ("error", "end")  # told from the result, by whoever reads


class RecordStopped(Protocol):
    """Takes what became of a cancelled run; `stuck` when some of its work would not stop."""

    async def __call__(self, task_id: str, body: Body, *, stuck: bool) -> None:
        """Store it."""
        ...


class Background:
    """The side of the engine that works; `execute` is what the engine calls."""

    def __init__(
        self,
        runner: Runner,
        agents: Callable[[], Mapping[str, Agent]],
        render: Render,
        record_stopped: RecordStopped,
    ) -> None:
        self._runner = runner
        self._agents = agents
        self._render = render
        self._tell_stopped = record_stopped

    async def execute(self, attempt: Attempt) -> Result:
        """Work one attempt to its end. Raises HandedOver where it is not this process's to end."""
        former = self._runner.in_flight.get(attempt.task_id)
        if former is not None:  # lost and found again, before it had stopped
            await asyncio.shield(former.ended)
        log = Log(attempt, lambda reason: self._runner.stop(run, reason))
        run = self._runner.work(self._agents()[attempt.agent], attempt, log)
        log.open(run)
        writing = asyncio.create_task(log.keep_up(), name=f"log of {run.id}")
        try:
            ended = await asyncio.shield(run.ended)
        finally:
            writing.cancel()
        if isinstance(ended.error, HandedOver):
            raise ended.error
        if isinstance(ended.error, Cancelled):
            body = self._render(run, ended)
            await self._record_stop(run, body)
            return Result(Outcome.CANCELLED, body)
        body = self._render(run, ended)
        try:
            await log.finish(ended.outcome)
        except Cancelled:  # so long ago that it stands, other than was told here
            return Result(Outcome.CANCELLED, {})
        return Result(ended.outcome, body, lambda: self._render(run, ending.as_not_storable(ended)))

    async def _record_stop(self, run: Run, body: Body) -> None:
        """That it was cancelled is stored already; what became of it is told if it can be."""
        stuck = self._runner.is_stuck(run)
        for _ in range(_REPORT_ATTEMPTS):
            try:
                await self._tell_stopped(run.id, body, stuck=stuck)
                return
            except StoreUnavailable:
                await asyncio.sleep(_AGAIN_S)

    def stop(self, task_id: str, cancelled: bool) -> None:
        """The store says that a run worked here was cancelled, or that another has it."""
        run = self._runner.in_flight.get(task_id)
        if run is not None and run.attempt is not None:
            self._runner.stop(run, Cancelled() if cancelled else HandedOver())


class Log:
    """Writes what one attempt says, in order."""

    def __init__(self, attempt: Attempt, lose: Callable[[RunError], None]) -> None:
        self.claim_token = attempt.claim_token
        self._attempt = attempt
        self._lose = lose
        self._loop = asyncio.get_running_loop()
        self._writing: asyncio.Task[bool | RunError | StoreUnavailable] | None = None
        self._rows = len(attempt.log)
        self._told = sum(len(row["events"]) for row in attempt.log)
        self._written = 0
        self._steps = 0
        self._is_refused = False
        self._run: Run | None = None

    def open(self, run: Run) -> None:
        """Write of this run; the steps of earlier attempts are written already."""
        self._run = run
        self._steps = len(run.progress.steps)

    async def keep_up(self) -> None:
        """Write what there is, a few times a second, until the run is lost or this cancelled."""
        assert self._run is not None
        with suppress(Cancelled, HandedOver, NotStorable):
            while True:
                await self._run.ring.changed(self._written, 15.0)
                await self._retry_until_available(self._write)
                await asyncio.sleep(_FLUSH_S)

    async def passed(self) -> None:
        """Return once all that was said is written, and the run is known to be ours.

        Raises Cancelled or HandedOver when it is not, and stops it. Raises NotStorable when the
        store cannot take what was said, which ends the run as well.
        """
        await self._retry_until_available(self._written_and_ours)

    def passed_in_thread(self) -> None:
        """The same, for a tool that works on a thread; on the loop itself nothing can wait."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            remaining_s = remaining()
            asked = asyncio.run_coroutine_threadsafe(self.passed(), self._loop)
            try:
                asked.result(None if math.isinf(remaining_s) else remaining_s)
            finally:
                asked.cancel()  # else it went on asking a store that is away, for nobody

    async def finish(self, outcome: Outcome) -> None:
        """Store how it ended, then the rest.

        Raises HandedOver when the run was lost before, Cancelled when it is too late to say so.
        """
        await self._retry_until_available(lambda: self._attempt.end(outcome))
        with suppress(NotStorable):  # the end is told already; its log does without the rest
            await self._retry_until_available(self._write)

    async def _retry_until_available(self, work: Callable[[], Awaitable[object]]) -> None:
        """Until the store is there; a run that is another's, or nobody's, is stopped here.

        So is one of which the store refuses what it was given: it would do so again.
        """
        while True:
            try:
                await work()
                return
            except (Cancelled, HandedOver, NotStorable) as gone:
                self._lose(gone)
                raise
            except StoreUnavailable:
                await asyncio.sleep(_AGAIN_S)

    async def _written_and_ours(self) -> bool:
        return await self._write() or await self._check()

    async def _check(self) -> bool:
        await self._attempt.check()
        return True

    async def _write(self) -> bool:
        """Whether there was anything to write. Whoever waits may leave; the writing goes on."""
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_row(), name="row of a log")
        else:
            await asyncio.wait({self._writing})  # what was said since is not in it
            return await self._write()
        written = await asyncio.shield(self._writing)
        if isinstance(written, bool):
            return written
        raise written

    async def _write_row(self) -> bool | RunError | StoreUnavailable:
        """What refuses the row is given, not raised: whoever waited for it may have left."""
        run = self._run
        assert run is not None
        entries = [e for e in run.ring.since(self._written) if e.name not in _LAST]
        if not entries or self._is_refused:
            return False
        row: dict[str, Any] = {
            "events": [[entry.name, dict(entry.data)] for entry in entries],
            "first": self._told + 1,  # the number of its first event, for whoever resumes
            "progress": run.so_far(self._steps),
        }
        if self._written == 0:
            row["trace"] = run.trace
        try:
            await self._attempt.write(self._rows, row)
        except (Cancelled, HandedOver, NotStorable, StoreUnavailable) as refused:
            self._is_refused = isinstance(refused, NotStorable)
            return refused
        self._rows += 1
        self._told += len(entries)
        self._written = entries[-1].id
        self._steps += len(row["progress"]["steps"])
        return True
