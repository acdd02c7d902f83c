"""What the core needs from outside."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from app.runs.events import Emit, Say
from app.runs.model import AgentAnswer, AgentInfo, EarlyStopping, Usage

# What a model call cost in US dollars; None for a model whose price is not known.
Price: TypeAlias = Callable[[str, Usage], float | None]


@dataclass(frozen=True, slots=True)
class AgentCall:
    """One run, as an agent is asked for it; `fault` is told when watching it goes wrong.

    `say` takes the text of models as it comes; it is None where nobody reads it.
    """

    run_id: str
    question: str
    iteration_limit: int
    early_stopping: EarlyStopping
    thread_id: str | None
    emit: Emit
    price: Price
    fault: Callable[[], None] = lambda: None
    say: Say | None = None


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
