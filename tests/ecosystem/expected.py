"""What is right for a run: one value that each of its reports is compared with."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Expected:
    """How each signal reports a run.

    `answer`, `retryable` and `detail` are not compared where they are None. Where `iterations` is
    None, the signals have to agree with the answer.
    """

    outcome: str = "completed"
    answer: str | None = None
    iterations: int | None = 0
    tool_calls: int = 0
    rejected: int = 0
    limit: str | None = None
    refused: bool = False
    code: str | None = None
    retryable: bool | None = None
    detail: str | None = None

    @property
    def answers(self) -> bool:
        """Whether the caller gets a finished run; a problem otherwise."""
        return self.code is None


def completed(
    answer: str | None, iterations: int | None = 0, tool_calls: int = 0, **more: Any
) -> Expected:
    """A run that ends with an answer."""
    return Expected(answer=answer, iterations=iterations, tool_calls=tool_calls, **more)


def limited(answer: str | None, iterations: int | None, tool_calls: int, **more: Any) -> Expected:
    """A run that a limit stopped, with an answer."""
    more.setdefault("limit", "iterations")
    return Expected(
        outcome="iteration_limit",
        answer=answer,
        iterations=iterations,
        tool_calls=tool_calls,
        **more,
    )


def failed(code: str, iterations: int | None = 0, tool_calls: int = 0, **more: Any) -> Expected:
    """A run that ends without an answer, by a failure of its model or of the agent."""
    more.setdefault("outcome", "failed")
    return Expected(code=code, iterations=iterations, tool_calls=tool_calls, **more)


def interrupted(iterations: int | None = 0, tool_calls: int = 0, **more: Any) -> Expected:
    """A run that stopped for a human."""
    more.setdefault("outcome", "interrupted")
    return Expected(code="interrupted", iterations=iterations, tool_calls=tool_calls, **more)
