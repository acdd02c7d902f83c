"""What the core needs from outside."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from app.runs.events import Emit, OnToken
from app.runs.model import AgentAnswer, AgentInfo, EarlyStopping, Usage
from app.runs.ring import Entry
from app.runs.tasks import (
    Body,
    EngineStats,
    Execute,
    Fence,
    Record,
    RunSnapshot,
    Task,
    TaskQuery,
    TaskSpec,
    TaskStatus,
    WaitCondition,
)

# What a model call cost in US dollars; None for a model whose price is not known.
Price: TypeAlias = Callable[[str, Usage], float | None]


@dataclass(frozen=True, slots=True)
class AgentCall:
    """One run, as an agent is asked for it; `fault` is told when watching it goes wrong.

    `on_token` takes the text of models as it comes; it is None if nobody reads it. A `durable` run
    stores its steps, so that another attempt goes on from there; `resumed` says that there was one
    before, and `iterations` how many it had. Runs of one `operation` repeat each other, so the
    calls of their tools have the same idempotency keys. `stopping` says whether the run is being
    stopped, so that its end closes what is open.
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
    """Somebody's agent, of whatever kind."""

    @property
    def info(self) -> AgentInfo:
        """What is known of it before it runs."""
        ...

    async def answer(self, call: AgentCall) -> AgentAnswer:
        """Run once, emitting a fact for each model and tool call.

        Raises `ModelFailed`, `AgentFailed` (the cause chained) or `Interrupted`.
        """
        ...


@runtime_checkable
class StatefulAgent(Agent, Protocol):
    """An agent that stores what outlives a run: conversations, and steps of background runs."""

    def use_store(self, threads: "ThreadStore", steps: Any) -> None:
        """Store there from now on; `steps` is a saver of the agent's library, or None."""
        ...


class TaskEngine(Protocol):
    """Keeps background runs and has them worked, at least once each, by some process.

    All of it raises StoreUnavailable, within seconds, while the store cannot be reached.
    """

    async def start(self, execute: Execute, agents: Sequence[str], *, works: bool) -> None:
        """Open the store and, if this process `works`, take runs of these agents from it."""
        ...

    async def stop(self) -> None:
        """Take no more runs, give back those that are still worked here, and close."""
        ...

    async def submit(self, spec: TaskSpec) -> tuple[Task, bool]:
        """Store a run; true if it is new, false if its key was used before.

        Raises KeyReused when that was with another body.
        """
        ...

    async def get(self, task_id: str) -> Task | None:
        """One run, with its body if it has ended."""
        ...

    async def spec_of(self, task_id: str) -> TaskSpec | None:
        """What was submitted as that run."""
        ...

    async def record(self, task_id: str) -> Record | None:
        """All that is stored of a run."""
        ...

    async def list(self, query: TaskQuery) -> tuple[Sequence[Task], str | None]:
        """A page of runs, and the cursor of the next one. Raises ValueError for a bad cursor."""
        ...

    async def cancel(self, task_id: str) -> TaskStatus | None:
        """Order a run to stop: the status in which that met it, None if it had ended before.

        Whoever works it obeys soon.
        """
        ...

    async def record_stopped(self, task_id: str, body: Body, *, stuck: bool) -> None:
        """Say what became of a cancelled run that this process worked; `stuck`: it goes on."""
        ...

    async def wait(
        self, task_id: str, condition: WaitCondition, timeout_s: float
    ) -> RunSnapshot | None:
        """How a run stands as soon as it stands so.

        None where it does not in that time, or where this process lets go of who waits.
        """
        ...

    def follow(self, task_id: str, event: int) -> AsyncIterator[Sequence[Entry]]:
        """The events of a run's log as they come, each with its number; none in between.

        Begins at that event, or somewhere before it; at the last ones where there are fewer. Ends
        when the run has ended, or when this process lets go of who waits. A store that is away is
        waited for.
        """
        ...

    @property
    def stats(self) -> EngineStats:
        """What was last read of the store; it is read again every few seconds."""
        ...


class ThreadStore(Protocol):
    """Keeps conversations, as text, by agent and thread; one run at a time has a thread."""

    async def acquire(self, agent: str, thread_id: str, run_id: str, lease_s: float) -> None:
        """Take a thread for a run. Raises InFlight when another run has it."""
        ...

    async def release(self, agent: str, thread_id: str, run_id: str) -> None:
        """Give a thread back."""
        ...

    async def read(self, agent: str, thread_id: str) -> str | None:
        """What was kept, or None for a thread that is not known."""
        ...

    async def write(self, agent: str, thread_id: str, run_id: str, text: str) -> None:
        """Keep this, in the place of what was kept, for the run that has the thread.

        Raises HandedOver when the thread is another run's, or the run was ended elsewhere.
        """
        ...

    async def delete(self, agent: str, thread_id: str) -> bool:
        """Drop a thread; false if it was not known. Raises InFlight while a run has it."""
        ...


class KeyStore(Protocol):
    """Remembers, by Idempotency-Key, what runs with a waiting caller answered."""

    async def acquire(self, key: str, fingerprint: str, run_id: str, lease_s: float) -> Body | None:
        """Take a key for a run; the body to replay if one with that key has ended.

        Raises InFlight, or KeyReused when the fingerprint is another one.
        """
        ...

    async def store(self, key: str, run_id: str, body: Body) -> None:
        """Remember what the run answered."""
        ...

    async def release(self, key: str, run_id: str) -> None:
        """The run gave nothing to remember: the next one with this key starts anew."""
        ...
