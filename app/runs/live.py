"""A run in flight: its request, what is known of it so far, and the moment it ended.

Whoever reads a run waits on `ended`; nobody who reads can hold it.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from app.runs import snapshot
from app.runs.admission import Ticket
from app.runs.deadline import Current, current
from app.runs.errors import RunError
from app.runs.events import (
    Emit,
    Event,
    IterationCounted,
    ModelCallRetried,
    RunFinished,
    RunHandedOver,
    RunStarted,
    Token,
    ToolCallFinished,
    ToolCallStarted,
)
from app.runs.model import (
    AgentAnswer,
    AgentInfo,
    Limit,
    Mode,
    Outcome,
    Phase,
    RunRequest,
    State,
    Step,
    Timings,
    Usage,
)
from app.runs.progress import Progress
from app.runs.ring import Ring
from app.runs.tasks import Attempt, Fence


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: an answer, or the error that stands for it."""

    outcome: Outcome
    answer: AgentAnswer | None
    error: RunError | None
    iterations: int
    tool_calls: int
    usage: Usage
    cost_usd: float | None
    duration_s: float
    timings: Timings
    phase: Phase | None
    steps: tuple[Step, ...]
    limit: Limit | None = None
    refused: bool = False


class Run:
    """One run. Only the runner changes it; `record` may be called from any thread."""

    def __init__(
        self,
        run_id: str,
        agent: AgentInfo,
        mode: Mode,
        request: RunRequest,
        emit: Emit,
        loop: asyncio.AbstractEventLoop,
        arrived_at: float | None = None,
    ) -> None:
        self.id = run_id
        self.agent = agent
        self.mode = mode
        self.request = request
        self.iteration_limit = request.max_iterations or agent.iteration_limit
        self.created_at = time.time()
        self.arrived_at = time.monotonic() if arrived_at is None else arrived_at
        self.deadline = self.arrived_at + request.timeout_s
        self.state = State.QUEUED
        self.progress = Progress(self.arrived_at)
        self.trace: str | None = None
        self.ring = Ring(loop)
        # True once it has a place, false if it ended before.
        self.admitted: asyncio.Future[bool] = loop.create_future()
        self._said: list[str] = []
        self._turn_began_at = 0
        self.context = copy_context()
        self.context.run(current.set, Current(run_id, self.deadline))
        self.ended: asyncio.Future[Ended] = loop.create_future()
        self.ticket: Ticket | None = None
        self.task: asyncio.Task[AgentAnswer] | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self.stopping: RunError | None = None
        self.died_in: Phase | None = None
        # What stands behind a background run; None for a run that somebody waits for.
        self.attempt: Attempt | None = None
        self.fence: Fence | None = None
        self.find_trace: Callable[[], str | None] = lambda: None
        self._emit = emit
        self._lock = threading.RLock()

    @property
    def trace_id(self) -> str | None:
        """The trace that its request is recorded in; `trace` is all of W3C's header."""
        return self.trace.split("-")[1] if self.trace else None

    def record(self, fact: Event, *, counts: bool = True) -> None:
        """Fold a fact in and pass it on; after the final fact nothing is said of a run.

        One that does not count is told to the sinks alone, and to nobody who reads the run.
        """
        with self._lock:
            if self.state is State.FINISHED:
                return
            if isinstance(fact, RunFinished | RunHandedOver):
                self.state = State.FINISHED
            if not counts:
                self._emit(fact)
                return
            self.progress.add(fact)
            self._emit(fact)
            if isinstance(fact, RunStarted) and self.trace is None:
                self.trace = self.find_trace()  # a background run has no request: it is its own
            self._show(fact)

    def on_token(self, token: Token) -> None:
        """Pass text on to whoever reads, from any thread."""
        with self._lock:
            if self.state is State.FINISHED:
                return
            if token.sub_agent is None:
                if not self.ring.keeps(self._turn_began_at):
                    self._said.clear()  # of no use without its beginning, and it has no bound
                self._said.append(token.text)
                self._turn_began_at = self._turn_began_at or self.ring.last_id + 1
            self.ring.add(
                "token", text=token.text, iteration=token.iteration, agent=token.sub_agent
            )

    def settle_text(self, answer: str) -> None:
        """Leave the readers with the answer: what they read since the last turn, or a correction.

        An agent whose text is not its answer says its answer once, at the end.
        """
        with self._lock:
            said = "".join(self._said)
            if said == answer and self.ring.keeps(self._turn_began_at):
                return
            iteration = self.progress.iterations + 1
            if said:
                self.ring.add("retract", iteration=iteration)
            self.ring.add("token", text=answer, iteration=iteration, agent=None)

    def _show(self, fact: Event) -> None:
        """What of a fact its readers are told."""
        match fact:
            case RunStarted():
                self.ring.add(
                    "run",
                    run_id=self.id,
                    trace_id=self.trace_id,
                    agent=self.agent.name,
                    deadline_s=fact.timeout_s,
                    iteration_limit=fact.iteration_limit,
                    demo=self.agent.demo,
                )
            case ToolCallStarted() if fact.own:
                call_id = self.progress.call_ids[fact.call_id]
                self.ring.add(
                    "tool_start", tool=fact.tool, call_id=call_id, iteration=fact.iteration
                )
            case ToolCallFinished() if fact.call_id in self.progress.call_ids:
                self.ring.add(
                    "tool_end",
                    tool=fact.tool,
                    call_id=self.progress.call_ids[fact.call_id],
                    outcome=fact.outcome,
                    duration_s=round(fact.at - fact.started_at, 4),
                )
            case IterationCounted():
                self._said.clear()
                self._turn_began_at = 0
                self.ring.add("iteration", iteration=fact.iteration, tool_calls=fact.tool_calls)
            case ModelCallRetried():
                self._said.clear()
                self._turn_began_at = 0
                self.ring.add("retract", iteration=fact.iteration)
            case _:
                pass

    def phase(self) -> Phase:
        """What holds the run now."""
        with self._lock:
            return self.progress.phase

    def age_s(self) -> float:
        """Seconds since the run arrived."""
        return time.monotonic() - self.arrived_at

    def timings(self) -> Timings:
        """Where the time went so far, or until the end."""
        if self.ended.done():
            return self.ended.result().timings
        with self._lock:
            return self.progress.timings()

    def so_far(self, steps_reported: int) -> dict[str, Any]:
        """What another attempt needs to go on counting, with the steps that were not told."""
        with self._lock:
            return snapshot.taken(self.progress, steps_reported, content=self.request.include_steps)

    def steps(self) -> tuple[Step, ...]:
        """The tool calls that have finished."""
        with self._lock:
            return tuple(self.progress.steps)
