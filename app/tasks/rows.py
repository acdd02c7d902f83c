"""Background runs as rows: what is read of the engine's documented tables, and how it is told."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import JSONB

from app.runs.model import Outcome
from app.runs.tasks import STOP_S, AgentLoad, Body, Task, TaskStatus, status_of

# The name of the log of a run among the engine's streams.
LOG = "log"
# What we note on a run's row beside what the engine does.
STARTED, FINISHED, OUTCOME, ATTEMPTS = "started_at", "finished_at", "outcome", "attempts"
DEADLINE = "deadline_at"
# The claim under which it was begun last: one that has another is not at work yet.
BEGUN = "begun"
CREATED, FINGERPRINT, RETRY_OF, THREAD = "created_at", "fingerprint", "retry_of", "thread_id"
REACHED, IN_VAIN = "reached", "in_vain"
TRACE = "trace"
# `stopped` is JSON in a text: PostgreSQL's own keeps no NUL, which a tool may well say.
STOPPED, STUCK, LOST = "stopped", "stuck", "lost"

# How the engine says that a run has ended.
OVER = ("SUCCESS", "ERROR", "CANCELLED")
# And what of it has an index, for runs that have not.
LIVE = {"ENQUEUED": TaskStatus.PENDING, "PENDING": TaskStatus.RUNNING}


def can_be_kept(name: str) -> bool:
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
    def untold(self) -> sa.ColumnElement[bool]:
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
        begun = run.attributes[BEGUN].as_string() == run.owner_xid
        at_work = sa.and_(run.status == "PENDING", begun)
        ordered = {FINISHED: now}
        stopped = ordered | {STUCK: False}
        noted = sa.case((at_work, json.dumps(ordered)), else_=json.dumps(stopped))
        which = sa.and_(
            run.workflow_uuid == task_id,
            has_status(run.status, *LIVE),
            run.attributes[OUTCOME].as_string().is_(None),
        )
        return (
            self._merging(which, noted)
            .values(
                status="CANCELLED",
                owner_xid=None,
                queue_name=None,
                started_at_epoch_ms=None,
                completed_at=int(now * 1000),
            )
            .returning(run.attributes, run.executor_id)
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

    def untold_of(self, engine: sa.Engine, process: str, ids: Sequence[str]) -> set[str]:
        """Those of some runs that were cancelled at a process which has not said so yet."""
        run = self.runs.c
        chosen = sa.select(run.workflow_uuid).where(
            run.workflow_uuid.in_(ids), run.executor_id == process, self.untold
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
        if not can_be_kept(task_id):
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


def is_at_rest(status: str, noted: Mapping[str, Any]) -> bool:
    """Whether a run has ended for good.

    One that is ordered to stop at the moment of its end may have ended otherwise, and whoever
    works it says so a moment later.
    """
    if status != "CANCELLED":
        return status in OVER
    told = STUCK in noted or LOST in noted or FINISHED not in noted
    return told or time.time() - noted[FINISHED] > STOP_S


def task(row: Mapping[str, Any], output: Mapping[str, Any] | None = None) -> Task:
    """A row as the core knows it; the output, where it was read, says best how the run ended."""
    noted = dict(row["attributes"] or {})
    body = None
    if output is not None:
        noted[OUTCOME], body = output["outcome"], output["body"]
    status = TaskStatus.RUNNING
    if is_at_rest(row["status"], noted):
        status = _ended_as(row["status"], noted)
    elif row["status"] == "ENQUEUED":
        status = TaskStatus.PENDING
    finished = noted.get(FINISHED)
    if finished is None and row["completed_at"] is not None:
        finished = row["completed_at"] / 1000
    started = noted.get(STARTED)
    return Task(
        id=row["workflow_uuid"],
        agent=row["name"],
        status=status,
        attempts=noted.get(ATTEMPTS, 0),
        created_at=noted.get(CREATED, row["created_at"] / 1000),
        started_at=started,
        finished_at=finished if status.ended else None,
        body=body if body is not None else _body(noted.get(STOPPED)),
        fingerprint=noted.get(FINGERPRINT, ""),
        retry_of=noted.get(RETRY_OF),
        thread_id=noted.get(THREAD),
        stuck=noted.get(STUCK),
        trace=noted.get(TRACE),
    )


def text(body: Body) -> str:
    """A body as it is noted: PostgreSQL's own JSON has no place for the character NUL."""
    return json.dumps(dict(body))


def _body(noted: str | None) -> Body | None:
    if noted is None:
        return None
    body: Body = json.loads(noted)
    return body


def _ended_as(engine_status: str, noted: Mapping[str, Any]) -> TaskStatus:
    if engine_status == "CANCELLED":
        return TaskStatus.FAILED if noted.get(LOST) else TaskStatus.CANCELLED
    if engine_status == "SUCCESS" and noted.get(OUTCOME):
        return status_of(Outcome(noted[OUTCOME]))
    return TaskStatus.FAILED
