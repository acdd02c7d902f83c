"""Drives every run of every mode: admit, start, enforce the deadline, end once.

Each run is a task. At the deadline a timer cancels the task and, after a short grace, ends the
run even if the task has not stopped: `asyncio.timeout` would wait for work that will not stop.
`_settle` releases everything that a run holds, exactly once. A `finally` in the task could not: a
task that is cancelled before its first step never reaches it.
"""

import asyncio
import uuid
from collections.abc import Callable, Mapping
from functools import partial

from app.runs import archive, beginning, ending, final_facts, snapshot
from app.runs.admission import Admission
from app.runs.archive import Archive
from app.runs.clock import SYSTEM, Clock
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
from app.runs.ports import Agent, Fence, Price
from app.runs.tasks import HUNG_S, AttemptStart, Record
from app.runs.threads import DaemonThreads

# How long a cancelled task may take to stop before its run ends without it.
GRACE_S = 0.1


class Runner:
    """Drives the runs of this process, and counts work that outlives its run."""

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
        clock: Clock = SYSTEM,
    ) -> None:
        self.admission = admission
        # Readiness is red while `leaving`; new runs are refused while `draining`.
        self.leaving = False
        self.draining = False
        self.in_flight: dict[str, Run] = {}
        self._threads = threads
        self.emit = emit
        self._archive = Archive(keep_finished)
        self._price = price
        self._fault = fault
        self._trace = trace
        self._clock = clock
        # Tasks that did not stop with their run, each with the id of that run.
        self._abandoned: dict[asyncio.Task[AgentAnswer], str] = {}

    def start(
        self,
        agent: Agent,
        request: RunRequest,
        mode: Mode,
        run_id: str | None = None,
        arrived_at: float | None = None,
    ) -> Run:
        """Start or queue a run and return it at once; `run.ended` is its end.

        Its deadline counts from its arrival. A refused run has already ended as `rejected`, with
        Overloaded or Draining.
        """
        loop = asyncio.get_running_loop()
        run_id = run_id or str(uuid.uuid4())
        run = Run(run_id, agent.info, mode, request, self.emit, loop, arrived_at, self._clock)
        run.trace = self._trace()
        self.in_flight[run.id] = run
        if self.draining:
            self._settle(run, error=Draining())
            return run
        start_task = partial(run.context.run, self._start_task, run, agent, loop)
        try:
            remaining_s = max(0.0, run.deadline - self._clock.monotonic())
            run.ticket = self.admission.enter(start_task, remaining_s)
        except Overloaded as refusal:
            self._settle(run, error=refusal)
            return run
        if run.state is State.QUEUED:
            run.record(RunQueued(run_id=run.id, agent=run.agent.name, at=run.arrived_at, mode=mode))
        run.timers.append(loop.call_later(remaining_s, self.stop, run, DeadlineExceeded()))
        return run

    def execute(self, agent: Agent, attempt: AttemptStart, fence: Fence) -> Run:
        """Start an attempt at a background run. It bypasses admission: DBOS limits these runs.

        Its deadline counts from the start of the first attempt, even in another process.
        """
        loop = asyncio.get_running_loop()
        arrived_at = self._clock.since(attempt.started_at)
        fields = (attempt.task_id, agent.info, Mode.BACKGROUND, attempt.request, self.emit, loop)
        run = Run(*fields, arrived_at, self._clock)
        run.created_at = attempt.created_at
        run.attempt = attempt
        run.fence = fence
        run.find_trace = self._trace
        snapshot.restore(run.progress, attempt.log, whole=not agent.info.resumes)
        self.in_flight[run.id] = run
        run.context.run(self._start_task, run, agent, loop)
        remaining_s = max(0.0, run.deadline - self._clock.monotonic())
        # Not `run.deadline`: an attempt that starts after it has not hung.
        deadline = self._clock.monotonic() + remaining_s
        run.timers.append(loop.call_later(remaining_s, self._on_deadline, run, deadline))
        return run

    def report_ended_without_worker(
        self, agent: AgentInfo, record: Record, error: RunError
    ) -> None:
        """Emit the final fact of a background run that ended without a worker."""
        loop, task = asyncio.get_running_loop(), record.task
        arrived_at = self._clock.since(task.started_at or task.created_at)
        fields = (task.id, agent, Mode.BACKGROUND, record.request, self.emit, loop)
        run = Run(*fields, arrived_at, self._clock)
        snapshot.restore(run.progress, record.log, whole=not agent.resumes)
        self._emit_end(run, error.outcome, None, error, Phase(PhaseKind.QUEUE))

    def _on_deadline(self, run: Run, deadline: float) -> None:
        """Stop the run: timed out, or handed over if this process hung and may have lost it."""
        hung = self._clock.monotonic() - deadline > HUNG_S
        self.stop(run, HandedOver() if hung else DeadlineExceeded())

    @property
    def finished(self) -> Mapping[str, Run]:
        """The runs that ended recently, by id."""
        return self._archive.runs

    @property
    def stuck_tasks(self) -> int:
        """How many tasks of ended runs have not stopped."""
        return len(self._abandoned)

    def find(self, run_id: str) -> Run | None:
        """A run in flight, or one of the recently finished."""
        return self.in_flight.get(run_id) or self.finished.get(run_id)

    def refuse_if_draining(self) -> None:
        """Raises Draining if the service accepts no new runs any more."""
        if self.draining:
            raise Draining

    def stop(self, run: Run, reason: RunError) -> None:
        """Stop a run; it ends within GRACE_S. If it is called again, the first reason counts."""
        if run.ended.done() or run.stopping is not None:
            return
        run.phase_at_stop = run.phase()
        run.stopping = reason
        if run.task is None:
            self._settle(run, error=reason)
        elif not run.task.done():
            run.task.cancel()
            loop = asyncio.get_running_loop()
            run.timers.append(loop.call_later(GRACE_S, self._give_up, run))

    async def cancel(self, run: Run) -> Stopped:
        """Cancel a run and return whether its work really stopped."""
        finished_before = run.ended.done()
        self.stop(run, Cancelled())
        ended = await asyncio.shield(run.ended)
        if self.is_stuck(run):
            return Stopped.STILL_STOPPING
        if finished_before or ended.outcome is not Outcome.CANCELLED:
            return Stopped.ALREADY_FINISHED
        return Stopped.CANCELLED

    def is_stuck(self, run: Run) -> bool:
        """Whether some work of an ended run has not stopped."""
        leftover = self._leftover(run)
        return bool(leftover.threads or leftover.tasks)

    async def drain(self, notice_s: float, timeout_s: float) -> None:
        """Refuse new runs, let those in flight finish, and stop the rest.

        For `notice_s` readiness is red but new runs are still accepted, since load balancers
        notice it late. Then new and queued runs are refused, and running ones may finish within
        `timeout_s`. After that background runs are handed over, and the others are stopped.
        """
        self.leaving = True
        await asyncio.sleep(notice_s)
        self.draining = True
        for run in list(self.in_flight.values()):
            if run.state is State.QUEUED:
                self.stop(run, Draining())
        await self._wait_for_runs(timeout_s)
        for run in list(self.in_flight.values()):
            self.stop(run, HandedOver() if run.attempt else CutByShutdown())
        await self._wait_for_runs(4 * GRACE_S)

    async def _wait_for_runs(self, timeout_s: float) -> None:
        endings = [run.ended for run in self.in_flight.values()]
        if endings:
            await asyncio.wait(endings, timeout=timeout_s)

    def _start_task(self, run: Run, agent: Agent, loop: asyncio.AbstractEventLoop) -> None:
        now = self._clock.monotonic()
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
        """End a run after the grace although its task has not stopped."""
        if run.ended.done() or run.task is None or run.stopping is None:
            return
        if run.task.done():  # the loop was blocked; the done-callback ends the run next
            return
        self._abandoned[run.task] = run.id
        self._settle(run, error=run.stopping)

    def _settle(
        self, run: Run, *, answer: AgentAnswer | None = None, error: RunError | None = None
    ) -> None:
        """End a run once: close open calls, emit the end, wake readers, release the slot."""
        for timer in run.timers:
            timer.cancel()
        ending.forbid_repeats(run, error)
        outcome = ending.outcome(answer, error)
        phase = (run.phase_at_stop or run.phase()) if error is not None else None
        # Emit in the run's own context, so that its final facts belong to its trace.
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
        # The next attempt repeats calls that are open at a handover, so these do not count.
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
                    at=self._clock.monotonic(),
                    threads=leftover.threads,
                    tasks=leftover.tasks,
                )
            )
