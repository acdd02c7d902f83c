"""The third job: reports cancelled runs whose owner died before it could."""

import time

from app.runs.errors import Cancelled
from app.tasks.hooks import Hooks
from app.tasks.liveness import Locks
from app.tasks.queries import Queries
from app.tasks.transitions import Transitions

# An owner reports within seconds. From then on the job looks whether it has done so.
LOOK_AFTER_S = 10.0
# An owner that lives and has reported nothing for this long hangs: its report is not awaited.
HANGS_AFTER_S = 60.0


class Cancellations:
    """Watches the cancellations that callers of this process have made."""

    def __init__(
        self,
        queries: Queries,
        transitions: Transitions,
        process: str,
        hooks: Hooks,
        probe: Locks,
    ) -> None:
        self._queries = queries
        self._transitions = transitions
        self._process = process
        self._hooks = hooks
        self._probe = probe
        # By run: its owner, and when the watch began.
        self._watched: dict[str, tuple[str, float]] = {}

    def watch(self, task_id: str, owner: str) -> None:
        """From now on, report the end of this cancelled run if its owner is found dead."""
        if owner != self._process:
            self._watched[task_id] = owner, time.monotonic()

    def run(self) -> None:
        """Do one round."""
        for task_id, (owner, since) in list(self._watched.items()):
            age_s = time.monotonic() - since
            if age_s > LOOK_AFTER_S and not self._queries.unreported_of(owner, [task_id]):
                del self._watched[task_id]
            elif age_s > HANGS_AFTER_S or self._is_dead(owner, age_s):
                if self._transitions.report_stop_of(task_id, owner):
                    self._hooks.ended_without_worker(task_id, Cancelled())
                del self._watched[task_id]

    def restart(self) -> None:
        """Restart all periods: the store was away, and no owner could report."""
        now = time.monotonic()
        for task_id, (owner, _) in list(self._watched.items()):
            self._watched[task_id] = owner, now

    def _is_dead(self, owner: str, age_s: float) -> bool:
        if not self._probe.acquire(owner):
            return False
        self._probe.release(owner)
        return age_s >= self._probe.grace_s
