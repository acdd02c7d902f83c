"""What is stored of a submission, as plain JSON that every later version can read."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from app.runs.model import RunRequest
from app.runs.tasks import TaskSpec


def of(spec: TaskSpec) -> dict[str, Any]:
    """A submission as JSON."""
    asked = asdict(spec.request)
    asked["metadata"] = dict(spec.request.metadata)
    return {"request": asked, "traceparent": spec.traceparent}


def request(stored: Mapping[str, Any]) -> RunRequest:
    """The request in a stored submission; fields of a newer version are passed over."""
    known = RunRequest.__dataclass_fields__
    asked = {name: value for name, value in stored["request"].items() if name in known}
    return RunRequest(**asked)
