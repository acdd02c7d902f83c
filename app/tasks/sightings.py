"""How long this process has seen something without a break, by its own clock."""

import time
from collections.abc import Iterable
from typing import Generic, TypeVar

K = TypeVar("K")


class Sightings(Generic[K]):
    """The moments at which things were first seen. What is not seen again is forgotten."""

    def __init__(self) -> None:
        self._since: dict[K, float] = {}

    def ages(self, seen: Iterable[K]) -> dict[K, float]:
        """Return for how many seconds each of these has been seen, now included."""
        now = time.monotonic()
        self._since = {each: self._since.get(each, now) for each in seen}
        return {each: now - since for each, since in self._since.items()}

    @property
    def last(self) -> frozenset[K]:
        """What was seen last time."""
        return frozenset(self._since)

    def restart(self) -> None:
        """Forget everything: nobody could look for a while."""
        self._since.clear()
