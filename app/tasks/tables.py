"""The engine's documented tables, as far as we read and write them."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import JSONB

from app.runs.tasks import AgentLoad
from app.tasks.rows import (
    DEADLINE,
    ENDED_STATUSES,
    FINISHED,
    LIVE_STATUSES,
    LOG,
    LOST,
    OUTCOME,
    STARTED_TOKEN,
    STUCK,
)


def is_storable(name: str) -> bool:
    """Whether a row can have that name. PostgreSQL refuses a NUL even in a query."""
    return "\0" not in name


class Tables:
    """The columns that we use, in the schema of the engine."""

    def __init__(self, *, is_file: bool) -> None:
        schema = None if is_file else "dbos"
        self.is_file = is_file
        self.runs = sa.table(
            "workflow_status",
            *map(sa.column, ("workflow_uuid", "status", "name", "executor_id", "owner_xid")),
            sa.column("queue_name", sa.Text),
            sa.column("recovery_attempts", sa.BigInteger),
            sa.column("started_at_epoch_ms", sa.BigInteger),
            sa.column("created_at", sa.BigInteger),
            sa.column("completed_at", sa.BigInteger),
            sa.column("attributes", sa.JSON().with_variant(JSONB(), "postgresql")),
            schema=schema,
        )
        # Orders runs of the same `created_at`, which some versions of SQLite round to seconds.
        self.position = sa.column("rowid") if is_file else self.runs.c.workflow_uuid
        self.streams = sa.table(
            "streams",
            *map(sa.column, ("workflow_uuid", "key", "value")),
            *(sa.column(name, sa.Integer) for name in ("offset", "function_id")),
            schema=schema,
        )

        self.results = sa.table(
            "operation_outputs",
            *map(sa.column, ("workflow_uuid", "function_id", "function_name")),
            schema=schema,
        )

    @property
    def unreported(self) -> sa.ColumnElement[bool]:
        """A run was cancelled, and its worker has not reported how it ended."""
        run = self.runs.c
        return sa.and_(
            run.status == "CANCELLED",
            run.attributes[STUCK].as_string().is_(None),
            run.attributes[LOST].as_string().is_(None),
        )

    def insert_once(self, values: Mapping[str, Any]) -> sa.Insert:
        """Insert a row of a log, unless it exists."""
        insert = (sqlite if self.is_file else postgresql).insert(self.streams)
        once: sa.Insert = insert.values(**values).on_conflict_do_nothing()
        return once

    def merging(self, which: sa.ColumnElement[bool], attributes: Mapping[str, Any]) -> sa.Update:
        """Merge attributes into the rows of runs."""
        return self._merging_text(which, sa.literal(json.dumps(dict(attributes)), sa.Text))

    def _merging_text(
        self, which: sa.ColumnElement[bool], text: sa.ColumnElement[str]
    ) -> sa.Update:
        run = self.runs.c
        merged: Any = (
            sa.func.json_patch(sa.func.coalesce(run.attributes, sa.text("'{}'")), text)
            if self.is_file
            else sa.func.coalesce(run.attributes, sa.text("'{}'::jsonb")).op("||")(
                sa.cast(text, JSONB)
            )
        )
        return sa.update(self.runs).where(which).values(attributes=merged)

    def requeueing(self, which: sa.ColumnElement[bool]) -> sa.Update:
        """Requeue runs, as the engine's own resume does."""
        return (
            sa.update(self.runs)
            .where(which)
            .values(
                status="ENQUEUED",
                owner_xid=None,
                queue_name=self.runs.c.name,
                recovery_attempts=0,
                started_at_epoch_ms=None,
            )
        )

    def cancelling(self, task_id: str, now: float) -> sa.Update:
        """Cancel a run that has not ended, as the engine's own cancel does.

        Returns attributes and owner. A run that no worker has started is ended by this statement.
        """
        run = self.runs.c
        started = run.attributes[STARTED_TOKEN].as_string() == run.owner_xid
        executing = sa.and_(run.status == "PENDING", started)
        cancelled_at = {FINISHED: now}
        ended = cancelled_at | {STUCK: False}
        attributes = sa.case((executing, json.dumps(cancelled_at)), else_=json.dumps(ended))
        which = sa.and_(
            run.workflow_uuid == task_id,
            has_status(run.status, *LIVE_STATUSES),
            run.attributes[OUTCOME].as_string().is_(None),
        )
        cancelled = self._cancelled(self._merging_text(which, attributes), now)
        return cancelled.returning(run.attributes, run.executor_id)

    def losing(self, which: sa.ColumnElement[bool], attributes: Mapping[str, Any]) -> sa.Update:
        """End runs as lost. The attributes have the time, and LOST."""
        return self._cancelled(self.merging(which, attributes), attributes[FINISHED])

    def _cancelled(self, update: sa.Update, now: float) -> sa.Update:
        return update.values(
            status="CANCELLED",
            owner_xid=None,
            queue_name=None,
            started_at_epoch_ms=None,
            completed_at=int(now * 1000),
        )

    def overdue(self, engine: sa.Engine, before: float) -> list[Mapping[str, Any]]:
        """Return executing runs whose deadline passed before that moment."""
        run = self.runs.c
        deadline = run.attributes[DEADLINE].as_float()
        chosen = sa.select(*self.runs.c).where(run.status == "PENDING", deadline < before)
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(chosen).mappings()]

    def log(self, engine: sa.Engine, task_id: str, after: int) -> list[Mapping[str, Any]]:
        """Return the rows of a run's log from that offset on."""
        at = self.streams.c
        chosen = (
            sa.select(at.value)
            .where(at.workflow_uuid == task_id, at.key == LOG, at.offset >= after)
            .order_by(at.offset)
        )
        with engine.connect() as connection:
            return [json.loads(value) for (value,) in connection.execute(chosen)]

    def has_result(self, engine: sa.Engine, task_id: str) -> bool:
        """Whether the result of an attempt is stored. The engine executes such a run no more."""
        chosen = sa.select(self.results.c.workflow_uuid)
        with engine.connect() as connection:
            found = connection.execute(chosen.where(self.results.c.workflow_uuid == task_id))
            return found.first() is not None

    def reached(self, engine: sa.Engine, task_id: str) -> int:
        """Return the highest number of iterations in the log of a run."""
        log = self.log(engine, task_id, 0)
        return max((row["progress"]["iterations"] for row in log if "progress" in row), default=0)

    def loads(self, engine: sa.Engine) -> dict[str, AgentLoad]:
        """Count, for each agent, the runs that have not ended."""
        run = self.runs.c
        counts = (
            sa.select(run.name, run.status, sa.func.count(), sa.func.min(run.created_at))
            .where(has_status(run.status, *LIVE_STATUSES))
            .group_by(run.name, run.status)
        )
        loads: dict[str, AgentLoad] = {}
        now = time.time()
        with engine.connect() as connection:
            for name, status, count, oldest in connection.execute(counts):
                age = max(0.0, now - oldest / 1000)
                load = loads.get(name, AgentLoad())
                loads[name] = (
                    AgentLoad(load.queued, count, load.oldest_queued_s, age)
                    if status == "PENDING"
                    else AgentLoad(load.queued + count, load.running,
                                   max(load.oldest_queued_s, age), load.oldest_running_s)
                )  # fmt: skip
        return loads

    def check_writable(self, engine: sa.Engine) -> None:
        """Make sure that the store takes writes, without a change."""
        no_change = sa.update(self.runs).where(sa.false()).values(owner_xid=None)
        with engine.begin() as connection:
            connection.execute(no_change)

    def processes(self, engine: sa.Engine) -> set[str]:
        """Return the processes that own executing runs, dead or alive."""
        run = self.runs.c
        chosen = sa.select(run.executor_id).where(run.status == "PENDING").distinct()
        with engine.connect() as connection:
            return {name for name in connection.execute(chosen).scalars() if name is not None}

    def of_process(self, engine: sa.Engine, process: str) -> list[Mapping[str, Any]]:
        """Return the executing runs that a process owns."""
        run = self.runs.c
        chosen = sa.select(*self.runs.c).where(run.status == "PENDING", run.executor_id == process)
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(chosen).mappings()]

    def unreported_of(self, engine: sa.Engine, process: str, ids: Sequence[str]) -> set[str]:
        """Of these runs, return those that were cancelled and that the process has not reported."""
        run = self.runs.c
        chosen = sa.select(run.workflow_uuid).where(
            run.workflow_uuid.in_(ids), run.executor_id == process, self.unreported
        )
        with engine.connect() as connection:
            return set(connection.execute(chosen).scalars())

    def states(self, engine: sa.Engine, ids: Sequence[str]) -> dict[str, tuple[str, str | None]]:
        """Return the engine's status and the owner of each of these runs."""
        run = self.runs.c
        chosen = sa.select(run.workflow_uuid, run.status, run.executor_id)
        with engine.connect() as connection:
            found = connection.execute(chosen.where(run.workflow_uuid.in_(ids)))
            return {task_id: (status, executor) for task_id, status, executor in found}

    def row(self, engine: sa.Engine, task_id: str) -> Mapping[str, Any] | None:
        """Return the row of a run, or None."""
        if not is_storable(task_id):
            return None
        with engine.connect() as connection:
            chosen = sa.select(*self.runs.c).where(self.runs.c.workflow_uuid == task_id)
            found = connection.execute(chosen).mappings().one_or_none()
            return None if found is None else dict(found)

    def expired(self, engine: sa.Engine, before: float, limit: int) -> list[str]:
        """Return runs that ended before that moment."""
        run = self.runs.c
        chosen = sa.select(run.workflow_uuid).where(
            run.status.in_(ENDED_STATUSES), run.completed_at < int(before * 1000)
        )
        with engine.connect() as connection:
            return list(connection.execute(chosen.limit(limit)).scalars())


def has_status(column: sa.ColumnElement[str], *names: str) -> sa.ColumnElement[bool]:
    """The status is one of these, as literals: a partial index does not serve parameters."""
    literals: Any = sa.bindparam("statuses", names, expanding=True, literal_execute=True)
    return column.in_(literals)
