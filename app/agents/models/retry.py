"""Retries model calls after transient errors, within the run's remaining time."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import tenacity
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from tenacity.stop import stop_base

from app.runs import remaining

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 8.0


class _ExceedsDeadline(stop_base):
    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return retry_state.upcoming_sleep >= remaining()


class RetryModel(AgentMiddleware[Any, Any, Any]):
    """Middleware of our builder: makes at most `attempts` calls for one turn.

    It honours Retry-After, and stops at once if the wait would exceed the run's deadline.
    """

    def __init__(self, attempts: int = 3) -> None:
        super().__init__()
        self._attempts = attempts

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """Make the call. Raises the exception of the last attempt."""
        return await retrying(self._attempts)(handler, request)

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any]:
        """The same as `awrap_model_call`, for agents that are called synchronously."""
        return tenacity.Retrying(**_policy(self._attempts))(handler, request)


def retrying(attempts: int) -> tenacity.AsyncRetrying:
    """Return a retrying caller, bounded by `attempts` and the current run's deadline."""
    return tenacity.AsyncRetrying(**_policy(attempts))


def _policy(attempts: int) -> dict[str, Any]:
    return {
        "retry": tenacity.retry_if_exception(is_retryable),
        "stop": tenacity.stop_after_attempt(attempts) | _ExceedsDeadline(),
        "wait": _wait_s,
        "reraise": True,
    }


def is_retryable(error: BaseException) -> bool:
    """Whether a retry of the same call may succeed."""
    if getattr(error, "is_retryable", False) or isinstance(error, TimeoutError):
        return True
    # A broken stream surfaces as an error of the parser or the transport.
    broken_transport = type(error).__module__.startswith(("httpx", "httpcore"))
    return broken_transport or isinstance(error, json.JSONDecodeError)


def _wait_s(state: tenacity.RetryCallState) -> float:
    backoff = tenacity.wait_random_exponential(_FIRST_WAIT_S, _LONGEST_WAIT_S)(state)
    error = state.outcome.exception() if state.outcome else None
    return max(backoff, _retry_after_s(error))


def _retry_after_s(error: BaseException | None) -> float:
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return float(headers.get("retry-after", 0))
    except ValueError:  # a date: rare, and our own back-off is sufficient
        return 0.0
