"""Drives every run, whichever way it came in: admit, start, hold to the deadline, end once.

A run is a task of its own. Its deadline is a timer that cancels the task and, a short grace
later, ends the run whether the task has stopped or not: `asyncio.timeout` would wait for work
that will not stop. Everything a run holds is given back in `_settle`, which is reached exactly
once, because a task cancelled before its first step never runs its `finally`.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial

from app.runs import archive, beginning, ending, final_facts, snapshot
from app.runs.admission import Admission
from app.runs.archive import Archive
from app.runs.errors import (
    Cancelled,
    CutByShutdown,
    DeadlineExceeded,
    Draining,
    HandedOver,
    Overloaded,
    RunError,
)
from app.runs.events import Emit, RunQueued, WorkAbandoned
from app.runs.live import Ended, Run
from app.runs.model import (
    AgentAnswer,
    AgentInfo,
    LeftoverWork,
    Mode,
    Outcome,
    Phase,
    PhaseKind,
    RunRequest,
    State,
    Stopped,
)
from app.runs.ports import Agent, Price
from app.runs.tasks import HUNG_S, Attempt, Fence, Record
from app.runs.threads import DaemonThreads

# How long a cancelled task may take to stop before its run ends without it.
GRACE_S = 0.1


class Runner:
    """Owns every run from its arrival until nothing of it is left."""

    def __init__(
        self,
        admission: Admission,
        threads: DaemonThreads,
        emit: Emit,
        keep_finished: int,
        *,
        price: Price = lambda model, usage: None,
        fault: Callable[[], None] = lambda: None,
        trace: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.admission = admission
        self.leaving = False
        self.draining = False
        self.in_flight: dict[str, Run] = {}
        self._threads = threads
        self.emit = emit
        self._archive = Archive(keep_finished)
        self._price = price
        self._fault = fault
        self._trace = trace
        # Tasks that did not stop with their run, and the ids of these runs.
        self._abandoned: dict[asyncio.Task[AgentAnswer], str] = {}

    def start(
        self,
        agent: Agent,
        request: RunRequest,
        mode: Mode,
        run_id: str | None = None,
        arrived_at: float | None = None,
    ) -> Run:
        """Begin a run, or queue it; its end is `run.ended`. Its deadline counts from its arrival.

        A run that is refused ends at once, as `rejected`, with Overloaded or Draining.
        """
        loop = asyncio.get_running_loop()
        run_id = run_id or str(uuid.uuid4())
        run = Run(run_id, agent.info, mode, request, self.emit, loop, arrived_at)
        run.trace = self._trace()
        self.in_flight[run.id] = run
        if self.draining:
            self._settle(run, error=Draining())
            return run
        begin = partial(run.context.run, self._begin, run, agent, loop)
        try:
            remaining_s = max(0.0, run.deadline - time.monotonic())
            run.ticket = self.admission.enter(begin, remaining_s)
        except Overloaded as refusal:
            self._settle(run, error=refusal)
            return run
        if run.state is State.QUEUED:
            run.record(RunQueued(run_id=run.id, agent=run.agent.name, at=run.arrived_at, mode=mode))
        run.timers.append(loop.call_later(remaining_s, self.stop, run, DeadlineExceeded()))
        return run

    def work(self, agent: Agent, attempt: Attempt, fence: Fence) -> Run:
        """Begin an attempt at a background run; it has a place already.

        Its deadline counts from the first start of all attempts, whichever process made them.
        """
        loop = asyncio.get_running_loop()
        arrived_at = time.monotonic() - max(0.0, time.time() - attempt.started_at)
        about = (attempt.task_id, agent.info, Mode.BACKGROUND, attempt.request, self.emit, loop)
        run = Run(*about, arrived_at)
        run.created_at = attempt.created_at
        run.attempt = attempt
        run.fence = fence
        run.find_trace = self._trace
        snapshot.restore(run.progress, attempt.log, whole=not agent.info.resumes)
        self.in_flight[run.id] = run
        run.context.run(self._begin, run, agent, loop)
        remaining_s = max(0.0, run.deadline - time.monotonic())
        deadline = time.monotonic() + remaining_s
        run.timers.append(loop.call_later(remaining_s, self._on_deadline, run, deadline))
        return run

    def report_ended_without_worker(
        self, agent: AgentInfo, record: Record, error: RunError
    ) -> None:
        """Tell the end of a background run that came while nobody worked it."""
        loop, task = asyncio.get_running_loop(), record.task
        arrived_at = time.monotonic() - max(0.0, time.time() - (task.started_at or task.created_at))
        run = Run(task.id, agent, Mode.BACKGROUND, record.request, self.emit, loop, arrived_at)
        snapshot.restore(run.progress, record.log, whole=not agent.resumes)
        self._emit_end(run, error.outcome, None, error, Phase(PhaseKind.QUEUE))

    def _on_deadline(self, run: Run, deadline: float) -> None:
        """A process that was held still does not tell an end that another one may have told."""
        held = time.monotonic() - deadline > HUNG_S
        self.stop(run, HandedOver() if held else DeadlineExceeded())

    @property
    def finished(self) -> Mapping[str, Run]:
        """The runs that ended recently, by id."""
        return self._archive.runs

    @property
    def stuck_tasks(self) -> int:
        """How many tasks of ended runs would not stop."""
        return len(self._abandoned)

    def find(self, run_id: str) -> Run | None:
        """A run in flight, or one of the recently finished."""
        return self.in_flight.get(run_id) or self.finished.get(run_id)

    def refuse_if_draining(self) -> None:
        """Raises Draining where nothing new is taken any more."""
        if self.draining:
            raise Draining

    def stop(self, run: Run, reason: RunError) -> None:
        """Stop a run for a reason; it ends within the grace. The first reason counts."""
        if run.ended.done() or run.stopping is not None:
            return
        run.died_in = run.phase()
        run.stopping = reason
        if run.task is None:
            self._settle(run, error=reason)
        elif not run.task.done():
            run.task.cancel()
            loop = asyncio.get_running_loop()
            run.timers.append(loop.call_later(GRACE_S, self._give_up, run))

    async def cancel(self, run: Run) -> Stopped:
        """Cancel a run and report what really happened to its work."""
        finished_before = run.ended.done()
        self.stop(run, Cancelled())
        ended = await asyncio.shield(run.ended)
        if self.is_stuck(run):
            return Stopped.STILL_STOPPING
        if finished_before or ended.outcome is not Outcome.CANCELLED:
            return Stopped.ALREADY_FINISHED
        return Stopped.CANCELLED

    def is_stuck(self, run: Run) -> bool:
        """Whether some of an ended run's work would not stop."""
        leftover = self._leftover(run)
        return bool(leftover.threads or leftover.tasks)

    async def drain(self, notice_s: float, seconds: float) -> None:
        """Stop in an orderly way.

        For `notice_s` readiness is red while new runs are still taken, since callers learn of it
        late; then what is new or queued is refused, runs may finish for `seconds`, and what is
        left is cut.
        """
        self.leaving = True
        await asyncio.sleep(notice_s)
        self.draining = True
        for run in list(self.in_flight.values()):
            if run.state is State.QUEUED:
                self.stop(run, Draining())
        await self._wait_for_runs(seconds)
        for run in list(self.in_flight.values()):
            self.stop(run, HandedOver() if run.attempt else CutByShutdown())
        await self._wait_for_runs(4 * GRACE_S)

    async def _wait_for_runs(self, seconds: float) -> None:
        endings = [run.ended for run in self.in_flight.values()]
        if endings:
            await asyncio.wait(endings, timeout=seconds)

    def _begin(self, run: Run, agent: Agent, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        run.state = State.RUNNING
        run.record(beginning.started(run, now))
        call = beginning.call_for(run, self._price, self._fault)
        run.admitted.set_result(True)
        run.task = loop.create_task(beginning.answer(agent, call), name=f"run {run.id}")
        run.task.add_done_callback(partial(self._task_done, run))

    def _task_done(self, run: Run, task: asyncio.Task[AgentAnswer]) -> None:
        self._abandoned.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if run.ended.done():
            return
        if run.stopping is not None:
            self._settle(run, error=run.stopping)
        elif error is None and not task.cancelled():
            self._settle(run, answer=task.result())
        else:
            self._settle(run, error=ending.as_run_error(error))

    def _give_up(self, run: Run) -> None:
        """The grace is over: end the run and leave its task behind."""
        if run.ended.done() or run.task is None or run.stopping is None:
            return
        if run.task.done():  # the loop was held: what ends the run is next
            return
        self._abandoned[run.task] = run.id
        self._settle(run, error=run.stopping)

    def _settle(
        self, run: Run, *, answer: AgentAnswer | None = None, error: RunError | None = None
    ) -> None:
        """End a run once: close what is open, tell it, give back its place, wake its readers."""
        for timer in run.timers:
            timer.cancel()
        ending.forbid_repeats(run, error)
        outcome = ending.outcome(answer, error)
        phase = (run.died_in or run.phase()) if error is not None else None
        # In the run's own context, whoever ended it: its facts belong to its trace.
        ended = run.context.run(self._emit_end, run, outcome, answer, error, phase)
        del self.in_flight[run.id]
        run.ended.set_result(ended)
        if not run.admitted.done():
            run.admitted.set_result(False)
        run.ring.finish(*(["error"] if error is not None else []), "end")
        if run.ticket is not None:
            self.admission.leave(run.ticket)
        archive.release(run, error)
        if not isinstance(error, HandedOver):
            self._archive.add(run)

    def _emit_end(
        self,
        run: Run,
        outcome: Outcome,
        answer: AgentAnswer | None,
        error: RunError | None,
        phase: Phase | None,
    ) -> Ended:
        handed_over = isinstance(error, HandedOver)
        # What is at work when a run is handed over is made again: of this call only the sinks know.
        for fact in final_facts.of_open_calls(run, Outcome.CANCELLED if handed_over else outcome):
            run.record(fact, counts=not handed_over)
        self._report_leftover_work(run)
        if answer is not None and run.mode is not Mode.SYNC:
            run.settle_text(answer.text)
        ended = ending.ended(run, outcome, answer, error, phase)
        run.record(final_facts.handed_over(run) if handed_over else final_facts.of_run(run, ended))
        return ended

    def _leftover(self, run: Run) -> LeftoverWork:
        tasks = list(self._abandoned.values()).count(run.id)
        return LeftoverWork(threads=self._threads.busy_for(run.id), tasks=tasks)

    def _report_leftover_work(self, run: Run) -> None:
        self._threads.abandon(run.id)
        leftover = self._leftover(run)
        if leftover.threads or leftover.tasks:
            run.record(
                WorkAbandoned(
                    run_id=run.id,
                    agent=run.agent.name,
                    at=time.monotonic(),
                    threads=leftover.threads,
                    tasks=leftover.tasks,
                )
            )
