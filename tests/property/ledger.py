"""What really happened while a plan was run: each model call and tool call, as the far side saw it.

The same book decides what fails and how long things take, by the numbers of the plan alone.
"""

import asyncio
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.property.plan import ToolKind

# Long enough that branches overtake each other, short enough for thousands of runs.
_LONGEST_S = 0.015


@dataclass(frozen=True)
class Whose:
    """An agent or a helper; in copies of a branch, and copies within these, with their numbers."""

    name: str
    copy: str = ""


@dataclass(frozen=True)
class Asked:
    """One model call: of which turn (None in words, or of a helper), and what came of it."""

    whose: Whose
    turn: int | None
    answered: bool
    helps: bool = False
    concludes: bool = False


@dataclass(frozen=True)
class Worked:
    """A tool that worked."""

    whose: Whose
    turn: int
    kind: ToolKind


@dataclass
class Ledger:
    """One for each run. Threads write to it as well as the loop."""

    pace: int = 0
    asked: list[Asked] = field(default_factory=list)
    worked: list[Worked] = field(default_factory=list)
    raw: list[Whose] = field(default_factory=list)
    _tries: Counter[tuple[str, Whose, int | None]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(
        self,
        whose: Whose,
        turn: int | None,
        *,
        answered: bool,
        helps: bool = False,
        concludes: bool = False,
    ) -> None:
        """A model was asked."""
        with self._lock:
            self.asked.append(Asked(whose, turn, answered, helps, concludes))

    def work(self, whose: Whose, turn: int, kind: ToolKind) -> None:
        """A tool began to work."""
        with self._lock:
            self.worked.append(Worked(whose, turn, kind))

    def attempt(self, what: str, whose: Whose, turn: int | None = None) -> int:
        """The number of this attempt at something, from 0."""
        with self._lock:
            self._tries[what, whose, turn] += 1
            return self._tries[what, whose, turn] - 1

    def _seconds(self, place: str) -> float:
        number = self.attempt(place, Whose("pace"))
        return random.Random(f"{self.pace}/{place}/{number}").random() * _LONGEST_S

    async def rest(self, place: str) -> None:
        """Take some time, on the loop."""
        await asyncio.sleep(self._seconds(place))

    def block(self, place: str) -> None:
        """Take some time, on a thread."""
        time.sleep(self._seconds(place))

    def turns_of(self, whose: Whose, *, worked: bool = False) -> int:
        """So many of its turns asked for something, attempts at one counted once.

        With `worked`, only those of which a tool began to work.
        """
        if worked:
            return len({tool.turn for tool in self.worked if tool.whose == whose})
        if whose in self.raw:
            return 1
        turns = {asked.turn for asked in self.asked if asked.whose == whose and asked.answered}
        return len(turns - {None})
