"""Request and response headers that several routes share."""

from typing import Annotated, TypeAlias

from fastapi import Header

from app.runs.live import Run
from app.runs.tasks import Task

Key: TypeAlias = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Repeats with the same key and body are the same run.",
    ),
]


def run_headers(run: Run | Task) -> dict[str, str]:
    """`X-Run-Id`, and the W3C `traceresponse` if the run was traced."""
    traced = {"traceresponse": run.trace} if run.trace else {}
    return {"X-Run-Id": run.id, **traced}
