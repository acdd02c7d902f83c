"""The causes for which a run is refused or fails.

The docstring of each class is the sentence that callers read; `code` is its stable name.
No sentence contains text of an exception, a model or a tool.
"""

from typing import ClassVar

from app.runs.model import Outcome


class WatchkeeperError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "internal_error"
    retryable: bool = False

    @property
    def detail(self) -> str:
        """The fixed sentence of this cause."""
        return (type(self).__doc__ or "").strip()


class InvalidRequest(WatchkeeperError):
    """The request cannot be served as it was written."""

    code = "invalid_request"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class NotFound(WatchkeeperError):
    """There is nothing of that name here."""

    code = "not_found"


class NotServed(NotFound):
    """The run is there, and its agent is not served here any more."""


class InFlight(WatchkeeperError):
    """A run with this Idempotency-Key, or on this thread, is still in flight. Try again."""

    code = "in_flight"
    retryable = True
    retry_after_s = 1


class KeyReused(WatchkeeperError):
    """This Idempotency-Key was used with another body."""

    code = "key_reused"


class RunError(WatchkeeperError):
    """A run ended without an answer."""

    outcome: ClassVar[Outcome] = Outcome.FAILED


class StoreUnavailable(RunError):
    """The store cannot be reached or has no room; try again, best with one Idempotency-Key."""

    code = "store_unavailable"
    retryable = True
    retry_after_s = 5


class NoRoom(StoreUnavailable):
    """The store has no room for new runs, and nothing was stored; try again later."""


class Overloaded(RunError):
    """The service is full. Try again after the time that Retry-After gives."""

    code = "overloaded"
    retryable = True
    outcome = Outcome.REJECTED

    def __init__(self, retry_after_s: int) -> None:
        super().__init__()
        self.retry_after_s = retry_after_s


class Draining(RunError):
    """The service is shutting down. Try again, on another replica or in a moment."""

    code = "draining"
    retryable = True
    outcome = Outcome.REJECTED
    retry_after_s = 1


class CutByShutdown(Draining):
    """The service shut down before the run ended. Try again."""

    outcome = Outcome.CANCELLED


class DeadlineExceeded(RunError):
    """The run did not end within its timeout."""

    code = "timeout"
    retryable = True
    outcome = Outcome.TIMEOUT


class Cancelled(RunError):
    """The run was cancelled."""

    code = "cancelled"
    outcome = Outcome.CANCELLED


class Disconnected(RunError):
    """The client left before the run ended."""

    code = "disconnected"
    outcome = Outcome.DISCONNECTED


class ModelFailed(RunError):
    """The model failed, or gave a broken or incomplete answer."""

    code = "model_failed"
    retryable = True


class AnswerFiltered(ModelFailed):
    """The provider's filter cut the model's answer. Asking again will not help."""

    retryable = False


class OutputMissing(ModelFailed):
    """The model gave no structured output, which the agent asks for."""


class OutputInvalid(ModelFailed):
    """The model's structured output does not fit what the agent asks for."""


class AgentFailed(RunError):
    """The agent failed."""

    code = "agent_failed"


class NoAnswer(AgentFailed):
    """The agent ended without an answer to the question."""


class AnswerTooLarge(AgentFailed):
    """The agent's answer is larger or deeper than the service passes on."""


class NotStorable(AgentFailed):
    """The store refuses what the agent did or answered."""


class Interrupted(RunError):
    """The agent asked for a human, which this service cannot answer yet."""

    code = "interrupted"
    outcome = Outcome.INTERRUPTED


class WorkerLost(RunError):
    """Every process that worked on the run died before it ended."""

    code = "worker_lost"


class HandedOver(RunError):
    """Another process owns this run now; it has not ended."""

    code = "handed_over"
