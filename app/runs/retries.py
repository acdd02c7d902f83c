"""Repeats calls while the store is unavailable, with jitter: processes must not return together."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import tenacity

from app.runs.clock import SYSTEM, Clock
from app.runs.errors import StoreUnavailable

T = TypeVar("T")

_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.35, 0.65


async def retry_until_available(
    work: Callable[[], Awaitable[T]],
    *,
    attempts: int | None = None,
    deadline: float = math.inf,
    unavailable: tuple[type[Exception], ...] = (StoreUnavailable,),
    clock: Clock = SYSTEM,
) -> T:
    """Return what `work` returns, after as many attempts as it takes.

    Raises the last error of `unavailable` after that many attempts, or if the next one would start
    past the deadline on `clock.monotonic`. Raises every other error at once.
    """
    retrying = tenacity.AsyncRetrying(
        sleep=asyncio.sleep,
        retry=tenacity.retry_if_exception_type(unavailable),
        wait=tenacity.wait_random(_SHORTEST_WAIT_S, _LONGEST_WAIT_S),
        stop=lambda state: (
            state.attempt_number == attempts or clock.monotonic() + state.upcoming_sleep >= deadline
        ),
        reraise=True,
    )

    async def attempt() -> T:  # tenacity awaits coroutine functions only
        return await work()

    return await retrying(attempt)
