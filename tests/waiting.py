"""Waiting for what a test needs, with a bound and a message that names it."""

import asyncio
from collections.abc import Callable

BOUND_S = 30.0


async def came_true(claim: Callable[[], object], name: str, timeout_s: float = BOUND_S) -> None:
    """Return once the claim is true; fails with its name if that takes too long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not claim():
        assert loop.time() < deadline, f"not within {timeout_s} s: {name}"
        await asyncio.sleep(0.002)
