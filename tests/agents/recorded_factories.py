"""Factories that record their end, and the reports on them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from app.agents.factories import Factories


class Reports:
    """The reports on factories, in order."""

    def __init__(self, limit_s: float = 60.0) -> None:
        self.died: list[tuple[str, str]] = []
        self.not_closed: list[tuple[str, str]] = []
        self.slow: list[str] = []
        self.factories = Factories(
            limit_s,
            died=lambda name, error: self.died.append((name, type(error).__name__)),
            not_closed=lambda name, error: self.not_closed.append((name, type(error).__name__)),
            slow=lambda name, waited_s: self.slow.append(name),
        )


def plain() -> str:
    return "agent"


def named(name: str, log: list[str], fails: BaseException | None = None) -> Any:
    """A factory that records its opening and closing."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[str]:
        log.append(f"open {name}")
        yield name
        log.append(f"close {name}")
        if fails is not None:
            raise fails

    return opened


async def fails() -> None:
    await asyncio.sleep(0.02)
    raise OSError("gone")
