"""Background runs as they are stored: the request, the status, the log and the result."""

import hashlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from app.runs.model import Outcome, RunRequest

_IDS = uuid.UUID("5d0a7c1e-7f0e-4bb1-9a55-6a1c6a0c8f11")

# A process that has not ended its run this long after the deadline no longer owns it.
HUNG_S = 10.0
# How long the owner of a cancelled run has to report how it ended.
STOP_S = 4.0

# A finished run or a problem, as callers read it; stored once, at the end.
Body: TypeAlias = Mapping[str, Any]


class TaskStatus(StrEnum):
    """The status of a background run."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    ITERATION_LIMIT = "iteration_limit"
    TIMEOUT = "timeout"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether the status is final."""
        return self not in (TaskStatus.PENDING, TaskStatus.RUNNING)


def status_of(outcome: Outcome) -> TaskStatus:
    """The status of a background run with this outcome; an interrupted run has failed."""
    known = {status.value for status in TaskStatus}
    return TaskStatus(outcome.value) if outcome.value in known else TaskStatus.FAILED


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """The submission of a background run; its `timeout_s` counts from the first start.

    `fingerprint` detects another body under the same id; it is empty without an Idempotency-Key.
    `traceparent` is the span of the submission, and `retry_of` the run that this one repeats.
    """

    id: str
    agent: str
    request: RunRequest
    fingerprint: str = ""
    traceparent: str | None = None
    retry_of: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A stored background run; times are seconds since the epoch.

    `body` is the finished run or the problem; only the look-up of a single ended run reads it.
    `stuck` is whether some work of a cancelled run has not stopped; None until that is known.
    `trace` is the span of the last attempt; before the first attempt, of the submission.
    """

    id: str
    agent: str
    status: TaskStatus
    attempts: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    body: Body | None = None
    fingerprint: str = ""
    retry_of: str | None = None
    thread_id: str | None = None
    stuck: bool | None = None
    trace: str | None = None


def accepted(spec: TaskSpec, created_at: float) -> Task:
    """A run at the moment of its submission."""
    return Task(
        id=spec.id,
        agent=spec.agent,
        status=TaskStatus.PENDING,
        attempts=0,
        created_at=created_at,
        started_at=None,
        finished_at=None,
        fingerprint=spec.fingerprint,
        retry_of=spec.retry_of,
        thread_id=spec.request.thread_id,
        trace=spec.traceparent,
    )


@dataclass(frozen=True, slots=True)
class Record:
    """All that is stored of a background run: its state, its request and its log."""

    task: Task
    request: RunRequest
    log: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """The state of a background run, for a caller that waits for it.

    `rows` counts the rows of its log. `reported` means that its owner has reported how it ended.
    """

    ended: bool
    rows: int
    reported: bool


# What a caller waits for.
WaitCondition: TypeAlias = Callable[[RunSnapshot], bool]


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """Which background runs to list, newest first, after a cursor of an earlier list."""

    status: TaskStatus | None = None
    agent: str | None = None
    limit: int = 50
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class AgentLoad:
    """The background runs of one agent that have not ended; ages in seconds."""

    queued: int = 0
    running: int = 0
    oldest_queued_s: float = 0.0
    oldest_running_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Statistics of the store over all processes; `reachable` is about the store itself."""

    reachable: bool = True
    agents: Mapping[str, AgentLoad] = field(default_factory=dict)
    free_bytes: int | None = None
    reserve_bytes: int = 0

    @property
    def has_room(self) -> bool:
        """Whether new runs may be accepted."""
        return self.free_bytes is None or self.free_bytes >= self.reserve_bytes

    def of(self, agent: str) -> AgentLoad:
        """The load of one agent."""
        return self.agents.get(agent, AgentLoad())


@dataclass(frozen=True, slots=True)
class AttemptStart:
    """What one process's attempt at a background run starts with.

    `number` counts from 1. `started_at` is the start of the first attempt; times are seconds since
    the epoch by the clock of this process. `queued_s` is the wait before that. `log` has the rows
    of earlier attempts; `resumed` means that there was one. Each claim of the run has a new
    `claim_token`.
    """

    task_id: str
    agent: str
    request: RunRequest
    number: int
    resumed: bool
    created_at: float
    started_at: float
    log: Sequence[Mapping[str, Any]]
    claim_token: str
    queued_s: float = 0.0
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a background run, as it is stored."""

    outcome: Outcome
    body: Body


def task_id(agent: str, key: str | None) -> str:
    """A new id; the same one for every submission to an agent with the same key."""
    return str(uuid.uuid4() if key is None else uuid.uuid5(_IDS, f"{agent}\0{key}"))


def fingerprint(*parts: str) -> str:
    """A hash that tells two submissions apart without storing their text."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
