"""The stored form of a run: plain JSON that every later version can read."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from app.runs.model import RunRequest
from app.runs.tasks import Body, Task, TaskSpec
from app.tasks import rows
from app.tasks.states import state_of


def of(spec: TaskSpec) -> dict[str, Any]:
    """Return a submission as JSON."""
    fields = asdict(spec.request)
    fields["metadata"] = dict(spec.request.metadata)
    return {"request": fields, "traceparent": spec.traceparent}


def request(stored: Mapping[str, Any]) -> RunRequest:
    """Return the request of a stored submission. Ignores fields of a newer version."""
    known = RunRequest.__dataclass_fields__
    fields = {name: value for name, value in stored["request"].items() if name in known}
    return RunRequest(**fields)


def task(row: Mapping[str, Any], output: Mapping[str, Any] | None = None) -> Task:
    """Return a row as a `Task`, with its result if that was read."""
    attributes = row["attributes"] or {}
    status = state_of(row).as_status
    stuck = attributes.get(rows.STUCK)
    finished = attributes.get(rows.FINISHED)
    if finished is None and row["completed_at"] is not None:
        finished = row["completed_at"] / 1000
    started = attributes.get(rows.STARTED)
    return Task(
        id=row["workflow_uuid"],
        agent=row["name"],
        status=status,
        attempts=attributes.get(rows.ATTEMPTS, 0),
        created_at=attributes.get(rows.CREATED, row["created_at"] / 1000),
        started_at=started,
        finished_at=finished if status.ended else None,
        body=output["body"] if output is not None else _body(attributes.get(rows.STOPPED)),
        fingerprint=attributes.get(rows.FINGERPRINT, ""),
        retry_of=attributes.get(rows.RETRY_OF),
        thread_id=attributes.get(rows.THREAD),
        stuck=None if stuck is None else bool(stuck),
        trace=attributes.get(rows.TRACE),
    )


def text(body: Body) -> str:
    """Return a body in its stored form: the JSON type of PostgreSQL takes no NUL."""
    return json.dumps(dict(body))


def _body(stored: str | None) -> Body | None:
    if stored is None:
        return None
    body: Body = json.loads(stored)
    return body
