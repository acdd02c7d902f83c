"""The stored form of a submission: plain JSON that every later version can read."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from app.runs.model import RunRequest
from app.runs.tasks import TaskSpec


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
