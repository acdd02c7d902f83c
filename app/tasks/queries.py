"""Reads from the engine's tables. Each query is one transaction, and blocks."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from app.runs.tasks import AgentLoad
from app.tasks.rows import DEADLINE, LOG
from app.tasks.states import CLAIMS, STOPPING, RunState, in_state, is_over
from app.tasks.tables import Tables, is_storable

Row = Mapping[str, Any]


class Queries:
    """Reads runs on an engine of a store. Rows have `now`, the moment of the database."""

    def __init__(self, tables: Tables, engine: sa.Engine) -> None:
        self._tables = tables
        self._engine = engine
        self._columns = (*tables.runs.c, tables.now.label("now"))

    def row(self, task_id: str) -> Row | None:
        """Return the row of a run, or None."""
        if not is_storable(task_id):
            return None
        found = self.rows([task_id])
        return found[0] if found else None

    def rows(self, ids: Sequence[str]) -> list[Row]:
        """Return the rows of these runs."""
        return self._where(self._tables.runs.c.workflow_uuid.in_(ids))

    def log(self, task_id: str, after: int) -> list[Mapping[str, Any]]:
        """Return the rows of a run's log from that offset on."""
        at = self._tables.streams.c
        chosen = (
            sa.select(at.value)
            .where(at.workflow_uuid == task_id, at.key == LOG, at.offset >= after)
            .order_by(at.offset)
        )
        with self._engine.connect() as connection:
            return [json.loads(value) for (value,) in connection.execute(chosen)]

    def reached(self, task_id: str) -> int:
        """Return the highest number of iterations in the log of a run."""
        log = self.log(task_id, 0)
        return max((row["progress"]["iterations"] for row in log if "progress" in row), default=0)

    def processes(self) -> set[str]:
        """Return the processes that have claimed runs, dead or alive."""
        run = self._tables.runs.c
        chosen = sa.select(run.executor_id).where(in_state(self._tables, *CLAIMS)).distinct()
        with self._engine.connect() as connection:
            return {name for name in connection.execute(chosen).scalars() if name is not None}

    def claimed_by(self, process: str) -> list[Row]:
        """Return the runs that a process has claimed."""
        return self._where(
            in_state(self._tables, *CLAIMS), self._tables.runs.c.executor_id == process
        )

    def overdue(self) -> list[Row]:
        """Return claimed runs whose deadline has passed."""
        deadline = self._tables.runs.c.attributes[DEADLINE].as_float()
        return self._where(in_state(self._tables, *CLAIMS), deadline < self._tables.now)

    def unreported_of(self, process: str, ids: Sequence[str]) -> set[str]:
        """Of these runs, return those that were cancelled and that the process has not reported."""
        run = self._tables.runs.c
        stopping = in_state(self._tables, *STOPPING)
        found = self._where(run.workflow_uuid.in_(ids), run.executor_id == process, stopping)
        return {row["workflow_uuid"] for row in found}

    def ended_before(self, age_s: float, limit: int) -> list[str]:
        """Return runs that ended so many seconds ago, or more."""
        run = self._tables.runs.c
        before = sa.cast((self._tables.now - age_s) * 1000, sa.BigInteger)
        chosen = sa.select(run.workflow_uuid).where(
            is_over(self._tables), run.completed_at < before
        )
        with self._engine.connect() as connection:
            return list(connection.execute(chosen.limit(limit)).scalars())

    def loads(self) -> dict[str, AgentLoad]:
        """Count, for each agent, the runs that have not ended."""
        run = self._tables.runs.c
        is_claimed = sa.case((in_state(self._tables, *CLAIMS), sa.true()), else_=sa.false())
        oldest = sa.func.min(run.created_at) / sa.literal(1000.0)
        counts = (
            sa.select(run.name, is_claimed, sa.func.count(), self._tables.now - oldest)
            .where(in_state(self._tables, RunState.QUEUED, *CLAIMS))
            .group_by(run.name, is_claimed)
        )
        loads: dict[str, AgentLoad] = {}
        with self._engine.connect() as connection:
            for name, claimed, count, oldest_s in connection.execute(counts):
                age = max(0.0, float(oldest_s))
                load = loads.get(name, AgentLoad())
                loads[name] = (
                    AgentLoad(load.queued, count, load.oldest_queued_s, age)
                    if claimed
                    else AgentLoad(count, load.running, age, load.oldest_running_s)
                )
        return loads

    def check_writable(self) -> None:
        """Make sure that the store takes writes, without a change."""
        no_change = sa.update(self._tables.runs).where(sa.false()).values(owner_xid=None)
        with self._engine.begin() as connection:
            connection.execute(no_change)

    def _where(self, *conditions: sa.ColumnElement[bool]) -> list[Row]:
        with self._engine.connect() as connection:
            found = connection.execute(sa.select(*self._columns).where(*conditions))
            return [dict(row) for row in found.mappings()]
