"""The runs that have ended and are still remembered: so many, and fewer with all they said."""

import asyncio
from collections import OrderedDict, deque

from app.runs import ending
from app.runs.live import Run
from app.runs.ring import Ring

# How many finished runs can still be followed from their beginning.
_RESUMABLE = 100


class Archive:
    """Remembers the last `keep` runs, by id."""

    def __init__(self, keep: int) -> None:
        self.runs: OrderedDict[str, Run] = OrderedDict()
        self._keep = keep
        self._resumable: deque[Run] = deque()

    def add(self, run: Run) -> None:
        """Remember a run; the oldest ones are forgotten."""
        self.runs[run.id] = run
        while len(self.runs) > self._keep:
            self.runs.popitem(last=False)
        self._resumable.append(run)
        while len(self._resumable) > _RESUMABLE:
            dropped = self._resumable.popleft()
            dropped.ring = Ring(asyncio.get_running_loop())
            dropped.ring.finish()
            ending.drop_answer(dropped)
