"""What is noted on the row of a run beside what the engine does, and how such a row is told."""

import json
import time
from collections.abc import Mapping
from typing import Any

from app.runs.model import Outcome
from app.runs.tasks import STOP_S, Body, Task, TaskStatus, status_of

# The name of the log of a run among the engine's streams.
LOG = "log"
# What we note on a run's row beside what the engine does.
STARTED, FINISHED, OUTCOME, ATTEMPTS = "started_at", "finished_at", "outcome", "attempts"
DEADLINE = "deadline_at"
# The claim under which it was begun last: one that has another is not at work yet.
STARTED_TOKEN = "begun"
CREATED, FINGERPRINT, RETRY_OF, THREAD = "created_at", "fingerprint", "retry_of", "thread_id"
REACHED, IN_VAIN = "reached", "in_vain"
TRACE = "trace"
# `stopped` is JSON in a text: PostgreSQL's own keeps no NUL, which a tool may well say.
STOPPED, STUCK, LOST = "stopped", "stuck", "lost"

# How the engine says that a run has ended.
OVER = ("SUCCESS", "ERROR", "CANCELLED")
# And what of it has an index, for runs that have not.
LIVE = {"ENQUEUED": TaskStatus.PENDING, "PENDING": TaskStatus.RUNNING}


def is_final(status: str, noted: Mapping[str, Any]) -> bool:
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
    if is_final(row["status"], noted):
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
