"""Everything that can happen to a run, as a closed union of frozen facts.

Log lines, metrics and spans are translations of these, one file each. `at` is on
`time.monotonic`. Facts may carry what a caller, a model or a tool said (arguments, results,
exceptions): it is for the run's own record, and a sink decides what of it may leave.
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
    """What every fact about a run says. Its `names` come from outside, and are made safe here."""

    names: ClassVar[tuple[str, ...]] = ()

    run_id: str
    agent: str
    at: float

    def __post_init__(self) -> None:
        for field_name in self.names:
            given = getattr(self, field_name)
            if given is not None and (safe := plain.name(given)) is not given:
                object.__setattr__(self, field_name, safe)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQueued(Fact):
    """A run found no free place and waits for one."""

    mode: Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Fact):
    """A run has its place and begins to work."""

    mode: Mode
    iteration_limit: int
    timeout_s: float
    queue_wait_s: float
    thread_id: str | None = None
    # Of a background run: which attempt this is, how long it was stored before the first one,
    # the span that submitted it, and that of the attempt before.
    attempt: int = 1
    stored_s: float = 0.0
    links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCallStarted(Fact):
    """The agent asked its model. `parent_id` is the open tool call it was made in, if any."""

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
    """A streamed model call gave its first token."""

    names = ("provider", "model")

    call_id: str
    provider: str
    model: str
    started_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCallFinished(Fact):
    """A model call ended, well or not; every call that started ends exactly once."""

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
    """A tool began to work. `own` is false inside a sub-agent."""

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
    """The model asked for something that cannot be run: no tool is called for it."""

    names = ("tool",)

    tool: str
    reason: Rejection


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCallRetried(Fact):
    """A model call is made again: what was said since that iteration began does not count."""

    names = ("provider", "model")

    iteration: int
    provider: str
    model: str
    reason: CallOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class SubAgentStarted(Fact):
    """A tool asks an agent of its own; `parent_id` is the tool call."""

    names = ("name",)

    call_id: str
    parent_id: str
    name: str
    tally: Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class SubAgentFinished(Fact):
    """A sub-agent ended, with counts of its own: the run's are those of the agent asked."""

    call_id: str
    outcome: CallOutcome
    tally: Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationLimitReached(Fact):
    """The run is at its limit: its last answer comes next."""

    iteration_limit: int
    limit: Limit = Limit.ITERATIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkAbandoned(Fact):
    """A run ended while some of its work would not stop."""

    threads: int
    tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished(Fact):
    """The one final fact of a run, whatever happened."""

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
    # Which limit stopped the run, if one did; and whether its answer is a refusal.
    limit: Limit | None = None
    refused: bool = False
    error: BaseException | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    attempt: int = 1
    stored_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHandedOver(Fact):
    """This attempt at a background run is over and the run is not: another process has it."""

    mode: Mode
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBeganAnew(Fact):
    """A background run begins again from its input: what was kept of it is no use to its agent.

    `nodes` are those that it would have gone on with and the agent does not have; none where
    nothing was kept. What an earlier attempt cost stays, its iterations and steps do not.
    """

    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecovered(Fact):
    """A background run of a process that died was put back into its queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLost(Fact):
    """A background run killed every process that worked it, and is not tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamClosed(Fact):
    """A reader of a run's events is gone; `reason` is completed, left or stalled."""

    reason: str
    first_event_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOpened(Fact):
    """Somebody follows the events of a run."""


@dataclass(frozen=True, slots=True)
class Token:
    """Text of a model as it comes; `sub_agent` is None for the agent asked.

    It is for the readers of the run, and no fact about it: no sink is told.
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
    | RunRecovered
    | RunLost
    | StreamOpened
    | StreamClosed
)

Emit: TypeAlias = Callable[[Event], None]
OnToken: TypeAlias = Callable[[Token], None]
