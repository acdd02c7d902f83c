"""Extends the timeouts that only hold on a free machine, for tests of something else."""

import pytest

from app.agents import checkpoints
from app.tasks import store
from tests.tasks import background

# What bounds a wait for the store, or for work that is to stop. The tests that are for one of
# these leave it as it is: those of `tests/runs`, and the modules that `conftest.py` names.
LONG_S = background.LONG_S / 2
TIMES = {
    "app.tasks.store.ANSWER_S": LONG_S,
    "app.tasks.store._CALLER_BUSY_MS": LONG_S * 1000,
    "app.tasks.engine._SETTLE_S": LONG_S,
    "app.tasks.engine._HAND_OVER_S": LONG_S,
    "app.tasks.engine._CLOSE_S": LONG_S,
    "app.tasks.states.UNREPORTED_AFTER_S": LONG_S,
    "app.api.tasks.STOP_S": LONG_S,
    "app.api.task_events._STOP_S": LONG_S,
    "app.runs.locks._WAIT_S": LONG_S,
    "app.runs.locks._PAST_DEADLINE_S": LONG_S,
    "app.runs.runner.GRACE_S": 2.0,  # tests of work that will not stop wait for it
}


def extend_timeouts(patch: pytest.MonkeyPatch) -> None:
    """Set these timeouts until the patch is undone."""
    for name, value in TIMES.items():
        patch.setattr(name, value)
    for connecting in (store.POSTGRES, checkpoints._CONNECTION):
        patch.setitem(connecting, "connect_timeout", int(LONG_S))
