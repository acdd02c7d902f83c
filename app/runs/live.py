"""A run in flight: its request, its progress, and its end.

Readers wait on `ended`. No reader can delay the run.
"""

import asyncio
import threading
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from app.runs import snapshot
from app.runs.admission import Ticket
from app.runs.clock import SYSTEM, Clock
from app.runs.deadline import Current, current
from app.runs.errors import RunError
from app.runs.events import (
    Emit,
    Event,
    RunFinished,
    RunHandedOver,
    RunStarted,
    Token,
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
from app.runs.ports import Fence
from app.runs.progress import Progress
from app.runs.ring import Ring
from app.runs.tasks import AttemptStart
from app.runs.transcript import Transcript


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a run: an answer, or an error instead."""

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
    """One run. The runner changes it on the loop; any thread may call `record` and `on_token`."""

    def __init__(
        self,
        run_id: str,
        agent: AgentInfo,
        mode: Mode,
        request: RunRequest,
        emit: Emit,
        loop: asyncio.AbstractEventLoop,
        arrived_at: float | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self.id = run_id
        self.agent = agent
        self.mode = mode
        self.request = request
        self.iteration_limit = request.max_iterations or agent.iteration_limit
        self.clock = clock
        self.created_at = clock.wall()
        self.arrived_at = clock.monotonic() if arrived_at is None else arrived_at
        self.deadline = self.arrived_at + request.timeout_s
        self.state = State.QUEUED
        self.progress = Progress(self.arrived_at, clock)
        self.trace: str | None = None
        self.transcript = Transcript(run_id, agent, self.progress, loop)
        # True once the run has started, false if it ended before that.
        self.admitted: asyncio.Future[bool] = loop.create_future()
        self.context = copy_context()
        self.context.run(current.set, Current(run_id, self.deadline, clock))
        self.ended: asyncio.Future[Ended] = loop.create_future()
        self.ticket: Ticket | None = None
        self.task: asyncio.Task[AgentAnswer] | None = None
        self.timers: list[asyncio.TimerHandle] = []
        # Why the run is being stopped, and what it waited for when the stop began.
        self.stopping: RunError | None = None
        self.phase_at_stop: Phase | None = None
        # The runner sets these three for a background run only.
        self.attempt: AttemptStart | None = None
        self.fence: Fence | None = None
        self.find_trace: Callable[[], str | None] = lambda: None
        self._emit = emit
        self._lock = threading.RLock()

    @property
    def ring(self) -> Ring:
        """The events of this run, for readers."""
        return self.transcript.ring

    @property
    def trace_id(self) -> str | None:
        """The trace id in `trace`, which has the form of the W3C header."""
        return self.trace.split("-")[1] if self.trace else None

    def record(self, fact: Event, *, counts: bool = True) -> None:
        """Add a fact to the progress and the transcript, and emit it.

        With `counts=False` only emit it. After the final fact, do nothing.
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
                self.trace = self.find_trace()  # no request: the span that this fact started
            self.transcript.add(fact, self.trace_id)

    def on_token(self, token: Token) -> None:
        """Send streaming text to the readers; may be called from any thread."""
        with self._lock:
            if self.state is not State.FINISHED:
                self.transcript.add_token(token)

    def settle_text(self, answer: str) -> None:
        """Correct the text that readers have received, if it differs from the answer."""
        with self._lock:
            self.transcript.settle(answer)

    def phase(self) -> Phase:
        """What the run is waiting for now."""
        with self._lock:
            return self.progress.phase

    def age_s(self) -> float:
        """Seconds since the run arrived."""
        return self.clock.monotonic() - self.arrived_at

    def timings(self) -> Timings:
        """How the time was spent until now, or until the end."""
        if self.ended.done():
            return self.ended.result().timings
        with self._lock:
            return self.progress.timings()

    def snapshot(self, steps_reported: int) -> dict[str, Any]:
        """The snapshot for the next attempt, with the steps after the first `steps_reported`."""
        with self._lock:
            return snapshot.of(self.progress, steps_reported, content=self.request.include_steps)

    def steps(self) -> tuple[Step, ...]:
        """The tool calls that have finished."""
        with self._lock:
            return tuple(self.progress.steps)
