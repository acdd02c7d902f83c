"""The nouns that all packages share: the request of a run, its steps and its outcome."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from app.runs import plain, rendering


class Outcome(StrEnum):
    """How a run ended: the same value in the answer, the metric, the span and the log line."""

    COMPLETED = "completed"
    ITERATION_LIMIT = "iteration_limit"
    TIMEOUT = "timeout"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DISCONNECTED = "disconnected"
    INTERRUPTED = "interrupted"
    REJECTED = "rejected"


class CallOutcome(StrEnum):
    """How one model call or one tool call ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    TOOL_ERROR = "tool_error"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    RATE_LIMITED = "rate_limited"
    INCOMPLETE = "incomplete"


class Rejection(StrEnum):
    """Why a tool call of the model was not executed."""

    UNKNOWN_TOOL = "unknown_tool"
    INVALID_ARGS = "invalid_args"


class Mode(StrEnum):
    """How a run is read: by a waiting caller, as a stream, or later from the store."""

    SYNC = "sync"
    STREAM = "stream"
    BACKGROUND = "background"


class State(StrEnum):
    """The state of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"


class Stopped(StrEnum):
    """The result of a request to stop a run."""

    CANCELLED = "cancelled"
    STILL_STOPPING = "still_stopping"
    ALREADY_FINISHED = "already_finished"


class EarlyStopping(StrEnum):
    """The source of the answer at the iteration limit: the model, or a fixed sentence."""

    GENERATE = "generate"
    FORCE = "force"


class Limit(StrEnum):
    """Which limit stopped a run that ended at one."""

    ITERATIONS = "iterations"
    MODEL_CALLS = "model_calls"


class PhaseKind(StrEnum):
    """What a run can be waiting for."""

    QUEUE = "queue"
    LLM = "llm"
    TOOL = "tool"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Phase:
    """What a run is waiting for at one moment; a tool by its name."""

    kind: PhaseKind
    tool: str | None = None

    def __str__(self) -> str:
        return f"tool:{self.tool}" if self.kind is PhaseKind.TOOL else self.kind.value


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """The description of an agent: fixed at start, shown by `GET /agents`."""

    name: str
    kind: str
    description: str = ""
    tools: tuple[str, ...] = ()
    model: str | None = None
    demo: bool = False
    iteration_limit: int = 10
    early_stopping: EarlyStopping = EarlyStopping.GENERATE
    timeout_s: float = 30.0
    max_timeout_s: float = 300.0
    background_timeout_s: float = 3600.0
    conversations: bool = False
    # After a crash its background runs resume from the last step; otherwise they start again.
    resumes: bool = False
    # False if no model was found in it: its answer at a limit may be a fixed sentence.
    has_model: bool = True
    # Whether its own code prints the messages of callers and models.
    verbose: bool = False


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The request of a caller. `timeout_s` counts from arrival, the queue included."""

    question: str
    timeout_s: float
    max_iterations: int | None = None
    thread_id: str | None = None
    include_steps: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    # The same for all requests that repeat one Idempotency-Key; None without a key.
    operation: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens spent. `cache_read` is part of `input_tokens`, `reasoning` of `output_tokens`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read: int = 0
    cache_creation: int = 0
    reasoning: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read + other.cache_read,
            self.cache_creation + other.cache_creation,
            self.reasoning + other.reasoning,
        )


NO_USAGE = Usage()


@dataclass(slots=True)
class Tally:
    """The counts of a sub-agent; they change while it executes."""

    iterations: int = 0
    tool_calls: int = 0
    usage: Usage = NO_USAGE


@dataclass(frozen=True, slots=True)
class Step:
    """One finished tool call of a run; `started_s` counts from the run's arrival."""

    iteration: int
    tool: str
    call_id: str
    arguments: Any
    result: str | None
    outcome: CallOutcome
    started_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class Timings:
    """How the wall clock was spent. Each moment counts once: the four add up to the duration."""

    queue_s: float = 0.0
    llm_s: float = 0.0
    tools_s: float = 0.0
    other_s: float = 0.0


@dataclass(frozen=True, slots=True)
class AgentAnswer:
    """The answer of an agent at the end of its run; `output` holds plain JSON values.

    `limit` is the limit that stopped the run, if one did. `refused` marks an answer in which the
    model, or a rule of the agent, declines.

    The constructor raises TooMuch, or any exception of the code of the output. So the run fails
    before its end is reported, and every AgentAnswer can be sent and stored.
    """

    text: str
    output: Any = None
    limit: Limit | None = None
    refused: bool = False

    def __post_init__(self) -> None:
        text = plain.text(self.text)
        object.__setattr__(self, "text", rendering.whole(text))
        object.__setattr__(self, "output", rendering.whole(self.output, len(text)))


@dataclass(frozen=True, slots=True)
class LeftoverWork:
    """Threads and tasks that have not stopped with their run."""

    threads: int
    tasks: int
