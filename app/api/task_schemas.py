"""Response bodies of background runs."""

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, Field

from app.api import problems
from app.api.schemas import FinishedRun
from app.runs.errors import Cancelled, WorkerLost
from app.runs.model import Outcome
from app.runs.tasks import Body, Task, TaskStatus

ANSWERED = (TaskStatus.COMPLETED, TaskStatus.ITERATION_LIMIT)


class TaskView(BaseModel):
    """A background run. Without result and error in lists, and until it has ended."""

    task_id: str = Field(description="The same as its `run_id`.")
    run_id: str
    agent: str
    status: TaskStatus
    result: FinishedRun | None = None
    error: problems.Problem | None = None
    attempts: int = Field(description="How often a process started it.")
    created_at: str
    started_at: str | None
    finished_at: str | None
    queue_wait_s: float | None
    retry_of: str | None = Field(None, description="The run that this one repeats.")

    @classmethod
    def of(cls, task: Task, *, whole: bool = True) -> "TaskView":
        """A stored run as its callers read it; with `whole` including its result or error."""
        body = body_of(task) if whole and task.status.ended else None
        answered = task.status in ANSWERED
        return cls(
            task_id=task.id,
            run_id=task.id,
            agent=task.agent,
            status=task.status,
            result=FinishedRun.model_validate(body) if body and answered else None,
            error=problems.Problem.model_validate(body) if body and not answered else None,
            attempts=task.attempts,
            created_at=_moment(task.created_at) or "",
            started_at=_moment(task.started_at),
            finished_at=_moment(task.finished_at),
            queue_wait_s=_queue_wait_s(task),
            retry_of=task.retry_of,
        )


class TaskList(BaseModel):
    """Background runs, newest first; `next` is the cursor of the next page."""

    tasks: list[TaskView]
    next: str | None = None


def body_of(task: Task) -> Body:
    """The finished run or the problem of a run that has ended."""
    if task.body is not None:
        return task.body
    # It ended without a worker: cancelled in the queue, or every worker died.
    cancelled = task.status is TaskStatus.CANCELLED
    problem = problems.of_error(Cancelled() if cancelled else WorkerLost())
    outcome = Outcome.CANCELLED if cancelled else Outcome.FAILED
    body: dict[str, Any] = problem.model_copy(
        update={"run_id": task.id, "outcome": outcome}
    ).model_dump(mode="json", exclude_none=True)
    return body


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def _queue_wait_s(task: Task) -> float | None:
    if task.started_at is None:
        return None
    return round(max(0.0, task.started_at - task.created_at), 3)
