"""The second job: requeues runs whose process died, hangs, or has lost them.

DBOS itself recovers a run only in a process with the name of its owner. Here any process that
works requeues those of dead or hanging owners, and any such process takes them over.
"""

import sqlalchemy as sa

from app.runs.errors import Cancelled, WorkerLost
from app.runs.tasks import HUNG_S
from app.tasks.hooks import Hooks
from app.tasks.liveness import Locks
from app.tasks.queries import Queries, Row
from app.tasks.rows import IN_VAIN, REACHED, TAKEN_FROM
from app.tasks.sightings import Sightings
from app.tasks.states import RunState, state_of
from app.tasks.transitions import Transitions
from app.tasks.worker import Worker

# Claimed by this process but not executing for this long: orphaned.
ORPHAN_S = 10.0
# A run that kills every process must end: at most so many takeovers without a new iteration.
MAX_TAKEOVERS_WITHOUT_PROGRESS = 10


class Recovery:
    """Requeues runs. With `works=False` it leaves those of other processes alone."""

    def __init__(
        self,
        queries: Queries,
        transitions: Transitions,
        process: str,
        hooks: Hooks,
        probe: Locks,
        worker: Worker,
        *,
        works: bool,
    ) -> None:
        self._queries = queries
        self._transitions = transitions
        self._process = process
        self._hooks = hooks
        self._probe = probe
        self._worker = worker
        self._works = works
        self._orphans = Sightings[tuple[str, str | None]]()
        # Orphans that this process has no more: requeued, or cancelled and not reported.
        self._not_owned: set[tuple[str, str | None]] = set()
        # Processes with a free lock, and overdue runs by claim: the next owner gets a new period.
        self._suspects = Sightings[str]()
        self._late = Sightings[tuple[str, str | None]]()

    def run(self) -> None:
        """Do one round."""
        self._requeue_orphans()
        if self._works:
            self._take_over_of_dead()
            self._take_over_overdue()

    def restart(self) -> None:
        """Restart all periods: the store was away, and nobody could show that it is alive."""
        self._not_owned |= self._orphans.last
        self._orphans.restart()
        self._suspects.restart()
        self._late.restart()

    def _requeue_orphans(self) -> None:
        """Requeue runs of this process that it does not execute, as after a full disk."""
        executing = {(claim.task_id, claim.token) for claim in self._worker.claims()}
        owned = {_claim_of(row): row for row in self._queries.claimed_by(self._process)}
        self._not_owned |= self._orphans.last - owned.keys() - executing
        for claim, age_s in self._orphans.ages(owned.keys() - executing).items():
            if age_s >= ORPHAN_S:
                self._recover(owned[claim], died=False)
        for task_id, token in list(self._not_owned):
            is_cancelled = self._transitions.report_stop_of(task_id, self._process, token)
            if is_cancelled:
                self._hooks.ended_without_worker(task_id, Cancelled())
            self._not_owned.discard((task_id, token))

    def _take_over_of_dead(self) -> None:
        others = self._queries.processes() - {self._process}
        free = [owner for owner in others if self._probe.acquire(owner)]
        try:
            for owner, age_s in self._suspects.ages(free).items():
                if age_s >= self._probe.grace_s:
                    for row in self._queries.claimed_by(owner):
                        self._recover(row, died=True)
        finally:
            for owner in free:
                self._probe.release(owner)

    def _take_over_overdue(self) -> None:
        """Requeue runs whose owner hangs: overdue for HUNG_S. The next owner ends them at once."""
        late = {_claim_of(row): row for row in self._queries.overdue()}
        for claim, age_s in self._late.ages(late).items():
            if age_s >= HUNG_S:
                self._recover(late[claim], died=True)

    def _recover(self, row: Row, *, died: bool) -> None:
        """Recover a run. One that cannot be recovered, for whatever reason, delays no other."""
        try:
            self.recover(row, died=died)
        except sa.exc.SQLAlchemyError:
            raise
        except Exception as wrong:  # noqa: BLE001 - the others still have to be recovered
            self._hooks.failed(wrong)

    def recover(self, row: Row, *, died: bool) -> None:
        """Requeue a run whose owner died, hangs, or (`died=False`) could not store its result.

        After too many of the first two without a new iteration, end it as lost. A run that had not
        started did not kill its owner. A run that was cancelled, has ended or was claimed since
        its row was read stays unchanged.
        """
        task_id, before = row["workflow_uuid"], row["attributes"] or {}
        reached = self._queries.reached(task_id)
        got_further = reached > before.get(REACHED, -1)
        counts = died and state_of(row) is RunState.RUNNING
        in_vain = (0 if got_further else before.get(IN_VAIN, 0)) + counts
        attributes = {REACHED: reached, IN_VAIN: in_vain, TAKEN_FROM: row["owner_xid"]}
        if in_vain > MAX_TAKEOVERS_WITHOUT_PROGRESS:
            if self._transitions.give_up(row, attributes):
                self._hooks.ended_without_worker(task_id, WorkerLost())
        elif self._transitions.take_over(row, attributes):
            self._hooks.recovered(task_id, row["name"])


def _claim_of(row: Row) -> tuple[str, str | None]:
    return row["workflow_uuid"], row["owner_xid"]
