"""Background runs as they are stored: what was asked, how far it is, and how it ended."""

import hashlib
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

from app.runs.model import Outcome, RunRequest

_IDS = uuid.UUID("5d0a7c1e-7f0e-4bb1-9a55-6a1c6a0c8f11")

# So long after its deadline a run is no longer that of a process that has not ended it.
HUNG_S = 10.0
# So long whoever works a run that is cancelled has to say what became of it.
STOP_S = 4.0

# A finished run or a problem, as callers read it; stored once, at the end.
Body: TypeAlias = Mapping[str, Any]


class Fence(Protocol):
    """Stands before every tool call of a background run.

    `claim_token` is the name under which this process has the run.
    """

    @property
    def claim_token(self) -> str:
        """What names this process's claim of the run to the store."""
        ...

    async def passed(self) -> None:
        """Return once the run is known to be this process's. Raises Cancelled or HandedOver."""
        ...

    def passed_in_thread(self) -> None:
        """The same, for a tool that works on a thread; on the loop itself nothing can wait."""
        ...


class TaskStatus(StrEnum):
    """Where a background run is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    ITERATION_LIMIT = "iteration_limit"
    TIMEOUT = "timeout"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self not in (TaskStatus.PENDING, TaskStatus.RUNNING)


def status_of(outcome: Outcome) -> TaskStatus:
    """The status of a background run that ended so; one that asked for a human failed."""
    known = {status.value for status in TaskStatus}
    return TaskStatus(outcome.value) if outcome.value in known else TaskStatus.FAILED


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What is to be stored: `timeout_s` of the request counts from the run's first start.

    `fingerprint` tells another body under the same id; empty where nobody can repeat it.
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

    `body` is the finished run or the problem, in a single look-up of a run that has ended. Of one
    that was cancelled `stuck` says whether some of its work would not stop, once that is known.
    `trace` is that of the last attempt at it; of its submission, before the first one.
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
    """A run as it is in the moment in which it was stored."""
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
    """All that is stored of a background run: how it stands, what was asked, its log."""

    task: Task
    request: RunRequest
    log: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """How far a background run is, for a caller that waits for it.

    `rows` counts the rows of its log. `reported` means that its worker has reported how it ended.
    """

    ended: bool
    rows: int
    reported: bool


# What somebody waits for.
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
    """What the store says of all processes' work; `reachable` of the store itself."""

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
class Attempt:
    """One process's attempt at a background run.

    `number` counts from 1, `started_at` is the first start of all, `log` what earlier attempts
    wrote; `resumed` means that there was one. `claim_token` belongs to this claim of the run: the
    next claim has another token. `write` puts a row at its place
    in the log, durably, `check` asks who has the run, and `end` stores how it ended, which nobody
    can cancel any more. They raise Cancelled when its caller has ended the run, HandedOver when it
    is another process's, and StoreUnavailable where they are to be tried again.
    """

    task_id: str
    agent: str
    request: RunRequest
    number: int
    resumed: bool
    created_at: float
    started_at: float
    log: Sequence[Mapping[str, Any]]
    write: Callable[[int, Mapping[str, Any]], Awaitable[None]]
    check: Callable[[], Awaitable[None]]
    end: Callable[[Outcome], Awaitable[None]]
    claim_token: str = ""
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """How a background run ended, as it is stored.

    `problem` is stored in the place of a body that the store refuses for what is in it.
    """

    outcome: Outcome
    body: Body
    problem: Callable[[], Body] = dict


# Works one attempt to its end. Raises HandedOver where it is not this process's to end.
Execute: TypeAlias = Callable[[Attempt], Awaitable[Result]]


def task_id(agent: str, key: str | None) -> str:
    """A new id; the same one for every submission to an agent with the same key."""
    return str(uuid.uuid4() if key is None else uuid.uuid5(_IDS, f"{agent}\0{key}"))


def fingerprint(*parts: str) -> str:
    """Tells two submissions apart without keeping what they say."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
