"""The first job: shows that this process is alive, and looks whether it has lost runs."""

import time
from collections.abc import Callable
from dataclasses import replace

from app.runs.tasks import EngineStats
from app.tasks.hooks import Hooks
from app.tasks.liveness import FileLocks, ServerLocks
from app.tasks.queries import Queries
from app.tasks.states import CLAIMS, STOPPING, state_of
from app.tasks.store import Store
from app.tasks.transitions import Claim

_STATS_EVERY_S = 2.0


class Heartbeat:
    """Keeps the lock of this process, stops attempts that have lost their run, counts runs."""

    def __init__(
        self,
        store: Store,
        queries: Queries,
        process: str,
        hooks: Hooks,
        lock: FileLocks | ServerLocks,
        claims: Callable[[], frozenset[Claim]],
    ) -> None:
        self.stats = EngineStats(reserve_bytes=store.reserve_bytes)
        self._store = store
        self._queries = queries
        self._process = process
        self._hooks = hooks
        self._lock = lock
        self._claims = claims
        self._next_stats = 0.0

    def run(self) -> None:
        """Do one round."""
        self._lock.acquire(self._process)
        self._stop_lost()
        if time.monotonic() >= self._next_stats:
            self._next_stats = time.monotonic() + _STATS_EVERY_S
            self.count()

    def restart(self) -> None:
        """From now on the store counts as unreachable, until runs can be counted again."""
        self.stats = replace(self.stats, reachable=False)

    def count(self) -> None:
        """Read the statistics."""
        self._queries.check_writable()
        self.stats = EngineStats(
            agents=self._queries.loads(),
            free_bytes=self._store.free_bytes(),
            reserve_bytes=self._store.reserve_bytes,
        )

    def _stop_lost(self) -> None:
        """Stop attempts whose run was cancelled, or that another process has taken over."""
        claims = self._claims()
        if not claims:
            return
        rows = {row["workflow_uuid"]: row for row in self._queries.rows(_ids(claims))}
        for claim in claims:
            row = rows.get(claim.task_id)
            state = None if row is None else state_of(row)
            if row is None or state not in CLAIMS or row["owner_xid"] != claim.token:
                cancelled = state in STOPPING and claim.process == (row or {})["executor_id"]
                self._hooks.stop(claim.task_id, claim.token, cancelled)


def _ids(claims: frozenset[Claim]) -> list[str]:
    return list({claim.task_id for claim in claims})
