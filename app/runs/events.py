"""Everything that can happen to a run, as a closed union of frozen facts.

Log lines, metrics and spans are translations of these, one file each. `at` is on
the monotonic clock. Facts may contain content (arguments, results, messages, exceptions) for the
record of the run; each sink decides which content leaves the process.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from app.runs import plain
from app.runs.model import (
    NO_USAGE,
    CallOutcome,
    Limit,
    Mode,
    Outcome,
    Phase,
    Rejection,
    Tally,
    Timings,
    Usage,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """The fields of every fact. `names` lists fields with foreign text, which is made safe here."""

    names: ClassVar[tuple[str, ...]] = ()

    run_id: str
    agent: str
    at: float

    def __post_init__(self) -> None:
        for field_name in self.names:
            value = getattr(self, field_name)
            if value is not None and (safe := plain.name(value)) is not value:
                object.__setattr__(self, field_name, safe)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQueued(Fact):
    """A run found no free slot and waits for one."""

    mode: Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Fact):
    """A run has a slot and starts."""

    mode: Mode
    iteration_limit: int
    timeout_s: float
    queue_wait_s: float
    thread_id: str | None = None
    # For a background run: the number of the attempt, how long the run waited in the store before
    # the first one, and the spans of its submission and of the attempt before.
    attempt: int = 1
    stored_s: float = 0.0
    links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCallStarted(Fact):
    """The agent called its model. `parent_id` is the tool call that encloses this call, if any."""

    names = ("provider", "model")

    call_id: str
    parent_id: str | None
    iteration: int
    attempt: int
    provider: str
    model: str
    messages: Sequence[Any] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken(Fact):
    """A streamed model call returned its first token."""

    names = ("provider", "model")

    call_id: str
    provider: str
    model: str
    started_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCallFinished(Fact):
    """A model call ended; every call that started ends exactly once."""

    names = ("provider", "model", "finish_reason")

    call_id: str
    provider: str
    model: str
    started_at: float
    outcome: CallOutcome
    usage: Usage = NO_USAGE
    cost_usd: float | None = None
    finish_reason: str | None = None
    error: BaseException | None = None
    message: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationCounted(Fact):
    """A turn of the agent asked for tools, or for nothing usable; `iteration` counts from 1."""

    iteration: int
    tool_calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallStarted(Fact):
    """A tool call started. `own` is false inside a sub-agent."""

    names = ("tool", "tool_call_id")

    call_id: str
    parent_id: str | None
    tool: str
    iteration: int
    arguments: Any
    own: bool = True
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallFinished(Fact):
    """A tool call ended; every call that started ends exactly once."""

    names = ("tool",)

    call_id: str
    tool: str
    started_at: float
    outcome: CallOutcome
    result: str | None = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallRejected(Fact):
    """The model asked for a tool call that cannot be executed; no tool is called."""

    names = ("tool",)

    tool: str
    reason: Rejection


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCallRetried(Fact):
    """A model call is made again; text since the start of that iteration does not count."""

    names = ("provider", "model")

    iteration: int
    provider: str
    model: str
    reason: CallOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class SubAgentStarted(Fact):
    """A tool calls a sub-agent; `parent_id` is the tool call."""

    names = ("name",)

    call_id: str
    parent_id: str
    name: str
    tally: Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class SubAgentFinished(Fact):
    """A sub-agent ended. Its counts are its own; those of the run count the outer agent only."""

    call_id: str
    outcome: CallOutcome
    tally: Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationLimitReached(Fact):
    """The run has reached its limit; its answer comes next."""

    iteration_limit: int
    limit: Limit = Limit.ITERATIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkAbandoned(Fact):
    """A run ended, but some of its work has not stopped."""

    threads: int
    tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished(Fact):
    """The one final fact of every run."""

    mode: Mode
    outcome: Outcome
    code: str | None
    timeout_s: float
    duration_s: float
    timings: Timings
    iterations: int
    iteration_limit: int
    tool_calls: int
    tools: Mapping[str, int]
    usage: Usage
    cost_usd: float | None
    ttft_s: float | None
    phase: Phase | None
    # The limit that stopped the run, if one did; and whether its answer is a refusal.
    limit: Limit | None = None
    refused: bool = False
    error: BaseException | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    attempt: int = 1
    stored_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHandedOver(Fact):
    """This attempt at a background run has ended; the run continues in another process."""

    mode: Mode
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBeganAnew(Fact):
    """A background run starts again from its input: its agent cannot resume the stored state.

    `nodes` are the next nodes of the stored state that the agent no longer has; empty if no state
    was stored. The cost of earlier attempts still counts, their iterations and steps do not.
    """

    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationNotStored(Fact):
    """A run ended with an answer that could not be written to its thread, after its last fact.

    `error` is None if the store did not answer in time.
    """

    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecovered(Fact):
    """A background run of a process that died was requeued."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLost(Fact):
    """Every process that executed a background run died; it is not attempted again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamClosed(Fact):
    """A reader stopped following a run; `reason` is completed, left or stalled."""

    reason: str
    first_event_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOpened(Fact):
    """A reader started to follow the events of a run."""


@dataclass(frozen=True, slots=True)
class Token:
    """Streaming text of a model; `sub_agent` is None for the outer agent.

    It goes to the readers of the run only: it is no fact, so no sink receives it.
    """

    text: str
    iteration: int
    sub_agent: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", plain.sendable(self.text))
        if self.sub_agent is not None:
            object.__setattr__(self, "sub_agent", plain.name(self.sub_agent))


Event: TypeAlias = (
    RunQueued
    | RunStarted
    | ModelCallStarted
    | FirstToken
    | ModelCallFinished
    | IterationCounted
    | ToolCallStarted
    | ToolCallFinished
    | ToolCallRejected
    | ModelCallRetried
    | SubAgentStarted
    | SubAgentFinished
    | IterationLimitReached
    | WorkAbandoned
    | RunFinished
    | RunHandedOver
    | RunBeganAnew
    | ConversationNotStored
    | RunRecovered
    | RunLost
    | StreamOpened
    | StreamClosed
)

Emit: TypeAlias = Callable[[Event], None]
OnToken: TypeAlias = Callable[[Token], None]
