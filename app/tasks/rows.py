"""The attributes that we store on the row of a run, and how such a row becomes a `Task`."""

import json
import time
from collections.abc import Mapping
from typing import Any

from app.runs.model import Outcome
from app.runs.tasks import STOP_S, Body, Task, TaskStatus, status_of

# The name of the log of a run among the engine's streams.
LOG = "log"
# Names of attributes on the row of a run. Stored rows have them, so they never change.
STARTED, FINISHED, OUTCOME, ATTEMPTS = "started_at", "finished_at", "outcome", "attempts"
DEADLINE = "deadline_at"
# Claim token of the last attempt that started. If the row has another token, that attempt has not
# started.
STARTED_TOKEN = "begun"
CREATED, FINGERPRINT, RETRY_OF, THREAD = "created_at", "fingerprint", "retry_of", "thread_id"
REACHED, IN_VAIN = "reached", "in_vain"
TRACE = "trace"
# `stopped` is JSON in a text: the JSON type of PostgreSQL takes no NUL, which a tool may return.
STOPPED, STUCK, LOST = "stopped", "stuck", "lost"

# The statuses of the engine for a run that has ended.
ENDED_STATUSES = ("SUCCESS", "ERROR", "CANCELLED")
# The statuses of the engine for a run that has not ended; an index covers them.
LIVE_STATUSES = {"ENQUEUED": TaskStatus.PENDING, "PENDING": TaskStatus.RUNNING}


def is_final(status: str, attributes: Mapping[str, Any]) -> bool:
    """Whether the end of a run is final.

    A cancellation may meet a run that has just ended in another way. The worker then reports that
    end a moment later, and it replaces the cancellation.
    """
    if status != "CANCELLED":
        return status in ENDED_STATUSES
    reported = STUCK in attributes or LOST in attributes or FINISHED not in attributes
    return reported or time.time() - attributes[FINISHED] > STOP_S


def task(row: Mapping[str, Any], output: Mapping[str, Any] | None = None) -> Task:
    """Return a row as a `Task`. If the output was read, it decides how the run ended."""
    attributes = dict(row["attributes"] or {})
    body = None
    if output is not None:
        attributes[OUTCOME], body = output["outcome"], output["body"]
    status = TaskStatus.RUNNING
    if is_final(row["status"], attributes):
        status = _ended_as(row["status"], attributes)
    elif row["status"] == "ENQUEUED":
        status = TaskStatus.PENDING
    finished = attributes.get(FINISHED)
    if finished is None and row["completed_at"] is not None:
        finished = row["completed_at"] / 1000
    started = attributes.get(STARTED)
    return Task(
        id=row["workflow_uuid"],
        agent=row["name"],
        status=status,
        attempts=attributes.get(ATTEMPTS, 0),
        created_at=attributes.get(CREATED, row["created_at"] / 1000),
        started_at=started,
        finished_at=finished if status.ended else None,
        body=body if body is not None else _body(attributes.get(STOPPED)),
        fingerprint=attributes.get(FINGERPRINT, ""),
        retry_of=attributes.get(RETRY_OF),
        thread_id=attributes.get(THREAD),
        stuck=attributes.get(STUCK),
        trace=attributes.get(TRACE),
    )


def text(body: Body) -> str:
    """Return a body in its stored form: the JSON type of PostgreSQL takes no NUL."""
    return json.dumps(dict(body))


def _body(stored: str | None) -> Body | None:
    if stored is None:
        return None
    body: Body = json.loads(stored)
    return body


def _ended_as(engine_status: str, attributes: Mapping[str, Any]) -> TaskStatus:
    if engine_status == "CANCELLED":
        return TaskStatus.FAILED if attributes.get(LOST) else TaskStatus.CANCELLED
    if engine_status == "SUCCESS" and attributes.get(OUTCOME):
        return status_of(Outcome(attributes[OUTCOME]))
    return TaskStatus.FAILED
