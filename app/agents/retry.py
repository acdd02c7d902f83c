"""Asks a model again when that may help, and never for longer than the run has left."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import tenacity
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from tenacity.stop import stop_base

from app.runs import remaining

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 8.0


class _PastTheRun(stop_base):
    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return retry_state.upcoming_sleep >= remaining()


class RetryModel(AgentMiddleware[Any, Any, Any]):
    """Middleware of our builder: at most `attempts` calls for one turn.

    It honours Retry-After, and gives up at once when the wait would outlast the run.
    """

    def __init__(self, attempts: int = 3) -> None:
        super().__init__()
        self._attempts = attempts

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """Make the call; raises what the last attempt raised."""
        return await retrying(self._attempts)(handler, request)

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any]:
        """The same where the agent is called synchronously, as in a sync tool."""
        return tenacity.Retrying(**_policy(self._attempts))(handler, request)


def retrying(attempts: int) -> tenacity.AsyncRetrying:
    """Calls what it is given, at most so many times and never past the present run."""
    return tenacity.AsyncRetrying(**_policy(attempts))


def _policy(attempts: int) -> dict[str, Any]:
    return {
        "retry": tenacity.retry_if_exception(may_help),
        "stop": tenacity.stop_after_attempt(attempts) | _PastTheRun(),
        "wait": _wait_s,
        "reraise": True,
    }


def may_help(error: BaseException) -> bool:
    """Whether the same call may succeed if it is made again."""
    if getattr(error, "is_retryable", False) or isinstance(error, TimeoutError):
        return True
    # A broken stream comes up as whatever the parser or the transport made of it.
    broken_transport = type(error).__module__.startswith(("httpx", "httpcore"))
    return broken_transport or isinstance(error, json.JSONDecodeError)


def _wait_s(state: tenacity.RetryCallState) -> float:
    backoff = tenacity.wait_random_exponential(_FIRST_WAIT_S, _LONGEST_WAIT_S)(state)
    error = state.outcome.exception() if state.outcome else None
    return max(backoff, _asked_to_wait_s(error))


def _asked_to_wait_s(error: BaseException | None) -> float:
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return float(headers.get("retry-after", 0))
    except ValueError:  # a date: rare from model providers, and our own back-off is fine
        return 0.0
