"""Headers that every response about a run carries."""

from app.runs.live import Run
from app.runs.tasks import Task


def about(run: Run | Task) -> dict[str, str]:
    """`X-Run-Id`, and W3C's `traceresponse` where the run was traced."""
    traced = {"traceresponse": run.trace} if run.trace else {}
    return {"X-Run-Id": run.id, **traced}
