"""Runs that have ended: the last ones stay readable, the newest of them with all their events.

Readers may still use a run that has ended, so the archive never changes one: it replaces the run
by a copy without answer or events.
"""

import asyncio
import copy
from collections import OrderedDict, deque
from contextvars import Context
from dataclasses import replace

from app.runs.errors import RunError
from app.runs.live import Run
from app.runs.model import Mode

# How many finished runs can still be followed from their first event.
_RESUMABLE = 100


class Archive:
    """The last `capacity` runs that ended, by id."""

    def __init__(self, capacity: int) -> None:
        self.runs: OrderedDict[str, Run] = OrderedDict()
        self._capacity = capacity
        self._resumable: deque[str] = deque()

    def add(self, run: Run) -> None:
        """Add a run that has ended; evict the oldest."""
        # The caller of a sync run has read its answer.
        self.runs[run.id] = without_answer(run) if run.mode is Mode.SYNC else run
        while len(self.runs) > self._capacity:
            self.runs.popitem(last=False)
        self._resumable.append(run.id)
        while len(self._resumable) > _RESUMABLE:
            run_id = self._resumable.popleft()
            if run_id in self.runs:
                self.runs[run_id] = without_events(self.runs[run_id])


def without_answer(run: Run) -> Run:
    """A copy of an ended run without its answer."""
    stripped = copy.copy(run)
    stripped.ended = asyncio.get_running_loop().create_future()
    stripped.ended.set_result(replace(run.ended.result(), answer=None))
    stripped.writing = None
    return stripped


def without_events(run: Run) -> Run:
    """A copy of an ended run with neither answer nor events."""
    stripped = without_answer(run)
    stripped.transcript = run.transcript.emptied()
    return stripped


def release(run: Run, error: RunError | None) -> None:
    """Delete what only a run in flight needs: frames, timers, the question, the log."""
    run.task = None
    run.timers.clear()
    run.ticket = None
    run.context = Context()
    run.request = replace(run.request, question="")
    run.fence = None
    run.answer = None
    if run.attempt is not None:
        run.attempt = replace(run.attempt, request=run.request, log=())
    if error is not None:
        error.__cause__ = error.__context__ = None
        error.__traceback__ = None
