"""Lists, shows and cancels runs that are in flight or recently finished: `/runs`."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.api import problems
from app.api.deps import Service, ServiceDep
from app.api.headers import run_headers
from app.api.schemas import (
    RunDetail,
    RunList,
    RunView,
    StepView,
    StopResult,
    TimingsView,
    UsageView,
)
from app.api.task_events import find as find_task
from app.api.task_schemas import body_of
from app.api.tasks import cancel as cancel_task
from app.runs import snapshot
from app.runs.errors import NotFound
from app.runs.live import Run
from app.runs.model import Mode, State, Stopped
from app.runs.tasks import Record, Task, TaskStatus

router = APIRouter(prefix="/runs", tags=["runs"])

_BAD_QUERY: dict[int | str, dict[str, Any]] = {
    422: {"model": problems.Problem, "description": "`invalid_request`"}
}
_UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": problems.Problem, "description": "`not_found`"},
    503: {"model": problems.Problem, "description": "`store_unavailable` (with `Retry-After`)"},
}


@router.get("", summary="Runs in flight and recently finished", responses=_BAD_QUERY)
async def list_runs(
    service: ServiceDep,
    state: Annotated[State | None, Query(description="Only runs in this state.")] = None,
    agent: Annotated[str | None, Query(description="Only runs of this agent.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> RunList:
    """The runs of this process, newest first. `GET /agent/async` lists all background runs."""
    runner = service.runner
    known = [*runner.in_flight.values(), *runner.finished.values()]
    chosen = [
        run for run in known if state in (None, run.state) and agent in (None, run.agent.name)
    ]
    chosen.sort(key=lambda run: run.arrived_at, reverse=True)
    return RunList(runs=[RunView(**_row(run)) for run in chosen[:limit]])


@router.get("/{run_id}", summary="One run", responses=_UNKNOWN)
async def get_run(run_id: str, service: ServiceDep, response: Response) -> RunDetail:
    """A run in flight or recently finished, or a background run until it is deleted.

    If another process executes the run, the response has what that process stored last: it stores
    a few times a second and before each tool call. `phase` is then null.
    """
    run = service.runner.find(run_id)
    if run is None:
        record = await service.engine.record(run_id) if service.engine is not None else None
        if record is None:
            raise NotFound
        response.headers.update(run_headers(record.task))
        agent = service.agents.get(record.task.agent)
        return _stored(record, agent.info.iteration_limit if agent else None)
    response.headers.update(run_headers(run))
    content = run.request.include_steps
    usage, cost_usd = run.progress.usage, run.progress.cost_usd
    return RunDetail(
        **_row(run),
        timings=TimingsView.of(run.timings()),
        usage=UsageView.of(usage, cost_usd),
        steps=[StepView.of(step, content) for step in run.steps()],
        metadata=dict(run.request.metadata),
    )


@router.delete(
    "/{run_id}",
    summary="Cancel a run",
    response_model=StopResult,
    responses={202: {"model": StopResult, "description": "`still_stopping`"}, **_UNKNOWN},
)
async def cancel_run(run_id: str, service: ServiceDep, response: Response) -> StopResult:
    """The result is what really happened: `still_stopping` if the work cannot be stopped."""
    run = service.runner.find(run_id)
    if run is not None and run.attempt is None:
        response.headers.update(run_headers(run))
        stopped = await service.runner.cancel(run)
    else:
        task = await _find_stored(service, run_id)
        response.headers.update(run_headers(task))
        stopped = await cancel_task(service, task)
    if stopped is Stopped.STILL_STOPPING:
        response.status_code = 202
    return StopResult(run_id=run_id, result=stopped.value)


async def _find_stored(service: Service, run_id: str) -> Task:
    """A background run. Raises NotFound if there is none, or no store."""
    if service.engine is None:
        raise NotFound
    return await find_task(service, run_id)


def _stored(record: Record, iteration_limit: int | None) -> RunDetail:
    """A background run that this process does not execute, as stored."""
    task, request, progress = record.task, record.request, snapshot.read(record.log)
    body = body_of(task) if task.status.ended else {}
    state = State.FINISHED if task.status.ended else _STATES[task.status]
    ended_at = task.finished_at or time.time()
    age_s = round(max(0.0, ended_at - (task.started_at or task.created_at)), 3)
    waits = state is State.QUEUED and task.started_at is None
    timings = replace(progress.timings, queue_s=age_s) if waits else progress.timings
    fields = {
        "trace_id": task.trace.split("-")[1] if task.trace else None,
        "outcome": None,
        "code": None,
        "phase": "queue" if state is State.QUEUED else None,
        "iterations": progress.iterations,
        "limit": None,
        "refused": False,
        "iteration_limit": progress.iteration_limit or request.max_iterations or iteration_limit,
        "tool_calls": progress.tool_calls,
        "timings": TimingsView.of(timings),
        "usage": UsageView.of(progress.usage, progress.cost_usd),
        "steps": [StepView.of(step, request.include_steps) for step in progress.steps],
    }
    # The stored result overrides the log.
    fields |= {name: body[name] for name in fields if body.get(name) is not None}
    return RunDetail(
        run_id=task.id,
        agent=task.agent,
        mode=Mode.BACKGROUND,
        state=state,
        age_s=age_s,
        created_at=datetime.fromtimestamp(task.created_at, UTC).isoformat(),
        timeout_s=request.timeout_s,
        metadata=dict(request.metadata),
        **fields,
    )


_STATES = {TaskStatus.PENDING: State.QUEUED, TaskStatus.RUNNING: State.RUNNING}


def _row(run: Run) -> dict[str, Any]:
    ended = run.ended.result() if run.ended.done() else None
    phase = ended.phase if ended else run.phase()
    return {
        "run_id": run.id,
        "trace_id": run.trace_id,
        "agent": run.agent.name,
        "mode": run.mode,
        "state": run.state,
        "outcome": ended.outcome if ended else None,
        "code": ended.error.code if ended and ended.error else None,
        "phase": None if phase is None else str(phase),
        "age_s": round(ended.duration_s if ended else run.age_s(), 3),
        "created_at": datetime.fromtimestamp(run.created_at, UTC).isoformat(),
        "iterations": run.progress.iterations,
        "iteration_limit": run.iteration_limit,
        "limit": ended.limit if ended else None,
        "refused": ended is not None and ended.refused,
        "tool_calls": run.progress.tool_calls,
        "timeout_s": run.request.timeout_s,
    }
