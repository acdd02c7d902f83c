"""The protocols that the core requires of agents and stores."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from app.runs.events import Emit, OnToken
from app.runs.model import AgentAnswer, AgentInfo, EarlyStopping, Usage
from app.runs.ring import Entry
from app.runs.tasks import (
    AttemptStart,
    Body,
    EngineStats,
    Record,
    Result,
    RunSnapshot,
    Task,
    TaskQuery,
    TaskSpec,
    TaskStatus,
    WaitCondition,
)

# The cost of a model call in US dollars; None for a model without a known price.
Price: TypeAlias = Callable[[str, Usage], float | None]


class Fence(Protocol):
    """Confirms, before every tool call, that this process still owns the background run."""

    @property
    def claim_token(self) -> str:
        """The token of this process's claim of the run."""
        ...

    async def confirm_owned(self) -> None:
        """Return once the store confirms that we own the run. Raises Cancelled or HandedOver."""
        ...

    def confirm_owned_in_thread(self) -> None:
        """The same for a tool on a thread. Does nothing on the loop, where it cannot wait."""
        ...


class Attempt(Protocol):
    """One process's attempt at a background run, on the store.

    All methods raise HandedOver if another process has the run now, NotStorable if the store
    refuses the content, and StoreUnavailable if they should be retried. All but `report_stop`
    raise Cancelled if the run was cancelled.
    """

    @property
    def start(self) -> AttemptStart:
        """What it starts with."""
        ...

    async def write(self, offset: int, row: Mapping[str, Any]) -> None:
        """Store a row of the log under its number."""
        ...

    async def check(self) -> None:
        """Return if this attempt still has the run."""
        ...

    async def end(self, result: Result, offset: int, row: Mapping[str, Any] | None) -> None:
        """Store how the run ended, with the last row of its log. Nobody can cancel it then."""
        ...

    async def report_stop(self, body: Body, *, stuck: bool) -> None:
        """Store how a cancelled run stopped; `stuck`: some of its work has not stopped."""
        ...


# Executes one attempt, and stores its end. Raises HandedOver if this process lost the run, and
# Cancelled if the run was cancelled.
Execute: TypeAlias = Callable[[Attempt], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class AgentCall:
    """The call of an agent for one run; the handler calls `fault` when watching the run fails.

    `on_token` receives streaming text; it is None if no reader wants it. A `durable` run stores its
    steps, so that another attempt can resume; `resumed` is true if there was an earlier attempt,
    and `iterations` counts those before this one. Runs of one `operation` repeat each other, so
    their tool calls have the same idempotency keys. `stopping` returns whether the run is being
    stopped, so that its end closes the open calls.
    """

    run_id: str
    question: str
    iteration_limit: int
    early_stopping: EarlyStopping
    thread_id: str | None
    emit: Emit
    price: Price
    fault: Callable[[], None] = lambda: None
    on_token: OnToken | None = None
    durable: bool = False
    resumed: bool = False
    iterations: int = 0
    fence: Fence | None = None
    stopping: Callable[[], bool] = lambda: False
    operation: str | None = None


class Agent(Protocol):
    """An agent of any kind."""

    @property
    def info(self) -> AgentInfo:
        """The description of the agent."""
        ...

    async def answer(self, call: AgentCall) -> AgentAnswer:
        """Execute one run; emit a fact for each model and tool call.

        Raises `ModelFailed`, `AgentFailed` (the cause chained) or `Interrupted`.
        """
        ...


@runtime_checkable
class StatefulAgent(Agent, Protocol):
    """An agent that stores what outlives a run: conversations, and steps of background runs."""

    def use_store(self, threads: "ThreadStore", steps: Any) -> None:
        """Use this store from now on; `steps` is a saver of the agent's library, or None."""
        ...


class TaskEngine(Protocol):
    """Stores background runs; some process executes each of them at least once.

    Every method raises StoreUnavailable, within seconds, while the store cannot be reached.
    """

    async def start(self, execute: Execute, agents: Sequence[str], *, works: bool) -> None:
        """Open the store; if this process `works`, claim and execute runs of these agents."""
        ...

    async def stop(self) -> None:
        """Claim no more runs, hand over those that still execute here, and close."""
        ...

    async def submit(self, spec: TaskSpec) -> tuple[Task, bool]:
        """Store a run; true if it is new, false if its key was used before.

        Raises KeyReused if the key was used with another body.
        """
        ...

    async def get(self, task_id: str) -> Task | None:
        """One run, with its body if it has ended."""
        ...

    async def spec_of(self, task_id: str) -> TaskSpec | None:
        """The submission of a run."""
        ...

    async def record(self, task_id: str) -> Record | None:
        """All that is stored of a run."""
        ...

    async def list(self, query: TaskQuery) -> tuple[Sequence[Task], str | None]:
        """A page of runs, and the cursor of the next one. Raises ValueError for a bad cursor."""
        ...

    async def cancel(self, task_id: str) -> TaskStatus | None:
        """Order a run to stop. Return its status at that moment, None if it had ended before.

        The process that executes it stops it soon.
        """
        ...

    async def wait(
        self, task_id: str, condition: WaitCondition, timeout_s: float
    ) -> RunSnapshot | None:
        """Return the snapshot of a run as soon as it meets the condition.

        Return None after the timeout, or if this process is stopping.
        """
        ...

    def follow(self, task_id: str, event: int) -> AsyncIterator[Sequence[Entry]]:
        """Yield the numbered events of a run's log as they come; an empty list if idle.

        Starts at that event or before it; at the last events if the log has fewer. Ends with the
        run, or if this process is stopping. Retries while the store is unavailable.
        """
        ...

    @property
    def stats(self) -> EngineStats:
        """The statistics of the store, read again every few seconds."""
        ...


class ThreadStore(Protocol):
    """Stores conversations, as text, by agent and thread; one run at a time owns a thread."""

    async def acquire(self, agent: str, thread_id: str, run_id: str, lease_s: float) -> None:
        """Acquire a thread for a run. Raises InFlight if another run owns it."""
        ...

    async def release(self, agent: str, thread_id: str, run_id: str) -> None:
        """Release a thread."""
        ...

    async def read(self, agent: str, thread_id: str) -> str | None:
        """The stored conversation, or None for an unknown thread."""
        ...

    async def write(self, agent: str, thread_id: str, run_id: str, text: str) -> None:
        """Replace the stored conversation, for the run that owns the thread.

        Raises HandedOver if another run owns the thread, or if the run was ended elsewhere.
        """
        ...

    async def delete(self, agent: str, thread_id: str) -> bool:
        """Delete a thread; false if it is unknown. Raises InFlight while a run owns it."""
        ...


class KeyStore(Protocol):
    """Stores the answers of runs with a waiting caller, by Idempotency-Key."""

    async def acquire(self, key: str, fingerprint: str, run_id: str, lease_s: float) -> Body | None:
        """Acquire a key for a run. Return the body to replay if a run with that key has ended.

        Raises InFlight, or KeyReused if the fingerprint differs.
        """
        ...

    async def store(self, key: str, run_id: str, body: Body) -> None:
        """Store the answer of the run."""
        ...

    async def release(self, key: str, run_id: str) -> None:
        """Release a key without an answer: the next run with this key executes."""
        ...
