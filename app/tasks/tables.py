"""The engine's documented tables, as far as they are read and written beside it."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import JSONB

from app.runs.tasks import AgentLoad
from app.tasks.rows import DEADLINE, FINISHED, LIVE, LOG, LOST, OUTCOME, OVER, STARTED_TOKEN, STUCK


def is_storable(name: str) -> bool:
    """Whether there can be a row of that name: PostgreSQL refuses even to look for a NUL."""
    return "\0" not in name


class Tables:
    """The columns that are read, in the schema where the engine keeps them."""

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
        # What the engine knows of a moment is a second on some libraries of SQLite.
        self.place = sa.column("rowid") if is_file else self.runs.c.workflow_uuid
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
        """A run was cancelled, and whoever worked it has not said what became of it."""
        run = self.runs.c
        return sa.and_(
            run.status == "CANCELLED",
            run.attributes[STUCK].as_string().is_(None),
            run.attributes[LOST].as_string().is_(None),
        )

    def insert_once(self, values: Mapping[str, Any]) -> sa.Insert:
        """A row of a log, unless it is there."""
        insert = (sqlite if self.is_file else postgresql).insert(self.streams)
        once: sa.Insert = insert.values(**values).on_conflict_do_nothing()
        return once

    def noting(self, which: sa.ColumnElement[bool], noted: Mapping[str, Any]) -> sa.Update:
        """Merge notes into the row of a run."""
        return self._merging(which, sa.literal(json.dumps(dict(noted)), sa.Text))

    def _merging(self, which: sa.ColumnElement[bool], text: sa.ColumnElement[str]) -> sa.Update:
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
        """Put runs back into the queues of their agents, as the engine's own resume does."""
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
        """Order a run to stop that has not ended, as the engine's own cancel does.

        Gives its notes and its process; one that nobody works has stopped with that.
        """
        run = self.runs.c
        begun = run.attributes[STARTED_TOKEN].as_string() == run.owner_xid
        at_work = sa.and_(run.status == "PENDING", begun)
        ordered = {FINISHED: now}
        stopped = ordered | {STUCK: False}
        noted = sa.case((at_work, json.dumps(ordered)), else_=json.dumps(stopped))
        which = sa.and_(
            run.workflow_uuid == task_id,
            has_status(run.status, *LIVE),
            run.attributes[OUTCOME].as_string().is_(None),
        )
        cancelled = self._cancelled(self._merging(which, noted), now)
        return cancelled.returning(run.attributes, run.executor_id)

    def losing(self, which: sa.ColumnElement[bool], noted: Mapping[str, Any]) -> sa.Update:
        """Give runs up; the notes say when, and that they were lost."""
        return self._cancelled(self.noting(which, noted), noted[FINISHED])

    def _cancelled(self, update: sa.Update, now: float) -> sa.Update:
        return update.values(
            status="CANCELLED",
            owner_xid=None,
            queue_name=None,
            started_at_epoch_ms=None,
            completed_at=int(now * 1000),
        )

    def overdue(self, engine: sa.Engine, before: float) -> list[Mapping[str, Any]]:
        """Runs at work whose deadline passed before that moment."""
        run = self.runs.c
        deadline = run.attributes[DEADLINE].as_float()
        chosen = sa.select(*self.runs.c).where(run.status == "PENDING", deadline < before)
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(chosen).mappings()]

    def log(self, engine: sa.Engine, task_id: str, after: int) -> list[Mapping[str, Any]]:
        """The rows of a run's log after so many."""
        at = self.streams.c
        chosen = (
            sa.select(at.value)
            .where(at.workflow_uuid == task_id, at.key == LOG, at.offset >= after)
            .order_by(at.offset)
        )
        with engine.connect() as connection:
            return [json.loads(value) for (value,) in connection.execute(chosen)]

    def has_result(self, engine: sa.Engine, task_id: str) -> bool:
        """Whether what an attempt at a run came to is kept: then it is not worked again."""
        kept = sa.select(self.results.c.workflow_uuid)
        with engine.connect() as connection:
            found = connection.execute(kept.where(self.results.c.workflow_uuid == task_id))
            return found.first() is not None

    def reached(self, engine: sa.Engine, task_id: str) -> int:
        """The most iterations that any attempt at a run has told of."""
        log = self.log(engine, task_id, 0)
        return max((row["progress"]["iterations"] for row in log if "progress" in row), default=0)

    def loads(self, engine: sa.Engine) -> dict[str, AgentLoad]:
        """The runs of each agent that have not ended."""
        run = self.runs.c
        waiting = (
            sa.select(run.name, run.status, sa.func.count(), sa.func.min(run.created_at))
            .where(has_status(run.status, *LIVE))
            .group_by(run.name, run.status)
        )
        loads: dict[str, AgentLoad] = {}
        now = time.time()
        with engine.connect() as connection:
            for name, status, count, oldest in connection.execute(waiting):
                age = max(0.0, now - oldest / 1000)
                load = loads.get(name, AgentLoad())
                loads[name] = (
                    AgentLoad(load.queued, count, load.oldest_queued_s, age)
                    if status == "PENDING"
                    else AgentLoad(load.queued + count, load.running,
                                   max(load.oldest_queued_s, age), load.oldest_running_s)
                )  # fmt: skip
        return loads

    def touch(self, engine: sa.Engine) -> None:
        """Make sure that the store can be written, without changing anything."""
        nothing = sa.update(self.runs).where(sa.false()).values(owner_xid=None)
        with engine.begin() as connection:
            connection.execute(nothing)

    def processes(self, engine: sa.Engine) -> set[str]:
        """The processes that have runs at work, dead or alive."""
        run = self.runs.c
        chosen = sa.select(run.executor_id).where(run.status == "PENDING").distinct()
        with engine.connect() as connection:
            return {name for name in connection.execute(chosen).scalars() if name is not None}

    def of_process(self, engine: sa.Engine, process: str) -> list[Mapping[str, Any]]:
        """The runs that a process has at work."""
        run = self.runs.c
        chosen = sa.select(*self.runs.c).where(run.status == "PENDING", run.executor_id == process)
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(chosen).mappings()]

    def unreported_of(self, engine: sa.Engine, process: str, ids: Sequence[str]) -> set[str]:
        """Those of some runs that were cancelled at a process which has not said so yet."""
        run = self.runs.c
        chosen = sa.select(run.workflow_uuid).where(
            run.workflow_uuid.in_(ids), run.executor_id == process, self.unreported
        )
        with engine.connect() as connection:
            return set(connection.execute(chosen).scalars())

    def states(self, engine: sa.Engine, ids: Sequence[str]) -> dict[str, tuple[str, str | None]]:
        """The engine's status and the process of some runs."""
        run = self.runs.c
        chosen = sa.select(run.workflow_uuid, run.status, run.executor_id)
        with engine.connect() as connection:
            found = connection.execute(chosen.where(run.workflow_uuid.in_(ids)))
            return {task_id: (status, executor) for task_id, status, executor in found}

    def row(self, engine: sa.Engine, task_id: str) -> Mapping[str, Any] | None:
        """One run."""
        if not is_storable(task_id):
            return None
        with engine.connect() as connection:
            chosen = sa.select(*self.runs.c).where(self.runs.c.workflow_uuid == task_id)
            found = connection.execute(chosen).mappings().one_or_none()
            return None if found is None else dict(found)

    def expired(self, engine: sa.Engine, before: float, limit: int) -> list[str]:
        """Runs that ended before that moment."""
        run = self.runs.c
        chosen = sa.select(run.workflow_uuid).where(
            run.status.in_(OVER), run.completed_at < int(before * 1000)
        )
        with engine.connect() as connection:
            return list(connection.execute(chosen.limit(limit)).scalars())


def has_status(column: sa.ColumnElement[str], *names: str) -> sa.ColumnElement[bool]:
    """Spelt out: an index of some statuses only is not found by what a parameter may hold."""
    spelt: Any = sa.bindparam("statuses", names, expanding=True, literal_execute=True)
    return column.in_(spelt)
