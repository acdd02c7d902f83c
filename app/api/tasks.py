"""Background runs over HTTP: submit, list, follow, cancel and retry."""

import asyncio
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from app.api.connection import wait_or_disconnect
from app.api.deps import Service, ServiceDep
from app.api.headers import Key, run_headers
from app.api.responses import RUN_RESPONSES, plain_json, problem
from app.api.schemas import RunBody, StopResult
from app.api.stream import STREAM
from app.api.task_events import find, follow
from app.api.task_schemas import ANSWERED, TaskList, TaskView
from app.runs.errors import (
    InFlight,
    InvalidRequest,
    KeyReused,
    NoRoom,
    NotFound,
    NotServed,
)
from app.runs.model import AgentInfo, RunRequest, Stopped
from app.runs.ports import Agent
from app.runs.tasks import STOP_S, Task, TaskQuery, TaskSpec, TaskStatus, fingerprint
from app.runs.tasks import task_id as new_id

_MAX_WAIT_S = 60.0
_RETRY_AFTER_S = 1
# The lease of a thread until its run is stored; a stored run owns its thread without a lease.
_LEASE_S = 10.0


_STORE: dict[int | str, dict[str, Any]] = {503: problem("`store_unavailable` (with `Retry-After`)")}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    503: problem("`draining` or `store_unavailable` (with `Retry-After`)")
}
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: problem("`not_found`"), **_STORE}
_submit_options: dict[str, Any] = {
    "status_code": 202,
    "response_model": TaskView,
    "responses": {
        **{
            status: described
            for status, described in RUN_RESPONSES.items()
            if status not in (500, 504)
        },
        409: problem("`in_flight`: another run owns this thread"),
        **_REFUSALS,
    },
    "dependencies": [Depends(plain_json)],
}

router = APIRouter(tags=["background runs"])


@router.post("/agent/async", summary="Ask the default agent in the background", **_submit_options)
async def submit_default(
    body: RunBody, response: Response, service: ServiceDep, idempotency_key: Key = None
) -> TaskView:
    """Accepted means stored: from here on the run is not lost."""
    return await _submit(service, service.agent(), body, idempotency_key, response)


@router.post("/agents/{name}/async", summary="Ask an agent in the background", **_submit_options)
async def submit_named(
    name: str, body: RunBody, response: Response, service: ServiceDep, idempotency_key: Key = None
) -> TaskView:
    """Accepted means stored: from here on the run is not lost."""
    return await _submit(service, service.agent(name), body, idempotency_key, response)


@router.get(
    "/agent/async",
    summary="Background runs",
    responses={422: problem("`invalid_request`"), **_STORE},
)
async def list_tasks(
    request: Request,
    response: Response,
    service: ServiceDep,
    status: Annotated[TaskStatus | None, Query(description="Only runs of this status.")] = None,
    agent: Annotated[str | None, Query(description="Only runs of this agent.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Query(description="`next` of the page before.")] = None,
) -> TaskList:
    """Newest first, without results."""
    try:
        tasks, following = await service.tasks.list(TaskQuery(status, agent, limit, cursor))
    except ValueError as wrong:
        raise InvalidRequest("cursor", "must be the `next` of a list") from wrong
    if following is not None:
        address = request.url.include_query_params(cursor=following)
        response.headers["Link"] = f'<{address.path}?{address.query}>; rel="next"'
    return TaskList(tasks=[TaskView.of(task, whole=False) for task in tasks], next=following)


@router.get(
    "/agent/async/{task_id}",
    summary="One background run",
    responses={422: problem("`invalid_request`"), **_UNKNOWN},
)
async def get_task(
    task_id: str,
    request: Request,
    response: Response,
    service: ServiceDep,
    wait: Annotated[
        float,
        Query(ge=0, le=_MAX_WAIT_S, description="Seconds to wait for its end."),
    ] = 0.0,
) -> TaskView:
    """Its status and, once it has ended, its result or problem."""
    task = await find(service, task_id)
    if wait and not task.status.ended:
        ending = asyncio.ensure_future(service.tasks.wait(task_id, lambda s: s.ended, wait))
        try:
            if await wait_or_disconnect(ending, request.receive):
                ending.result()
        finally:
            ending.cancel()
        task = await find(service, task_id)
    response.headers.update(run_headers(task))
    if not task.status.ended:
        response.headers["Retry-After"] = str(_RETRY_AFTER_S)
    return TaskView.of(task)


@router.get(
    "/agent/async/{task_id}/events",
    summary="Follow a background run",
    response_class=Response,
    responses={
        200: STREAM,
        204: {"description": "The run has ended, and that event was its last."},
        422: problem("`invalid_request`"),
        **_UNKNOWN,
    },
)
async def follow_task(
    task_id: str,
    service: ServiceDep,
    last_event_id: Annotated[str | None, Header(pattern=r"^\d{1,15}$")] = None,
) -> Response:
    """Its events from the first or after `Last-Event-ID`, whichever process executes it."""
    return await follow(service, task_id, last_event_id)


@router.delete(
    "/agent/async/{task_id}",
    summary="Cancel a background run",
    responses={202: {"model": StopResult, "description": "`still_stopping`"}, **_UNKNOWN},
)
async def cancel_task(task_id: str, service: ServiceDep, response: Response) -> StopResult:
    """The result is what really happened, even if another process executes the run."""
    task = await find(service, task_id)
    stopped = await cancel(service, task)
    if stopped is Stopped.STILL_STOPPING:
        response.status_code = 202
    response.headers.update(run_headers(task))
    return StopResult(run_id=task_id, result=stopped.value)


async def cancel(service: Service, task: Task) -> Stopped:
    """Order a run to stop, and wait a moment for its owner to report how it ended."""
    status = await service.tasks.cancel(task.id)
    if status is TaskStatus.PENDING:
        return Stopped.CANCELLED
    if status is None and (await find(service, task.id)).status.ended:
        local = service.runner.find(task.id)
        stuck = local is not None and service.runner.is_stuck(local)
        return Stopped.STILL_STOPPING if stuck else Stopped.ALREADY_FINISHED
    if await service.tasks.wait(task.id, lambda snapshot: snapshot.reported, STOP_S) is None:
        return Stopped.STILL_STOPPING
    task = await find(service, task.id)
    if task.status is not TaskStatus.CANCELLED:  # it ended at that moment
        return Stopped.ALREADY_FINISHED
    return Stopped.STILL_STOPPING if task.stuck else Stopped.CANCELLED


@router.post(
    "/agent/async/{task_id}/retry",
    summary="Run it again",
    status_code=202,
    responses={
        409: problem("`in_flight`: it has not ended, or another run owns its thread"),
        422: problem("`invalid_request`, or `key_reused`"),
        **_UNKNOWN,
        **_REFUSALS,
    },
)
async def retry_task(
    task_id: str, response: Response, service: ServiceDep, idempotency_key: Key = None
) -> TaskView:
    """A new run of the same request, which points to the old one."""
    before = await find(service, task_id)
    agent = service.agents.get(before.agent)
    if agent is None:
        raise NotServed
    if not before.status.ended:
        raise InFlight
    spec = await service.tasks.spec_of(task_id)
    if spec is None:  # it was purged this moment
        raise NotFound
    retry = replace(
        spec,
        id=new_id(spec.agent, idempotency_key),
        request=_repeated(spec.request, before, agent.info, idempotency_key),
        fingerprint=fingerprint("retry", task_id) if idempotency_key else "",
        traceparent=service.trace(),
        retry_of=task_id,
    )
    return await _store_run(service, retry, idempotency_key, response)


def _repeated(request: RunRequest, before: Task, agent: AgentInfo, key: str | None) -> RunRequest:
    """The same request within the limits of today, which may be lower.

    A retry of a failed run is the same operation; a retry of an answered run is a new one.
    """
    iterations, operation = request.max_iterations, request.operation
    if operation is None or before.status in ANSWERED:
        operation = None if key is None else fingerprint(agent.name, key, before.id)
    return replace(
        request,
        timeout_s=min(request.timeout_s, agent.background_timeout_s),
        max_iterations=iterations and min(iterations, agent.iteration_limit),
        operation=operation,
    )


async def _submit(
    service: Service, agent: Agent, body: RunBody, key: str | None, response: Response
) -> TaskView:
    info = replace(
        agent.info,
        timeout_s=agent.info.background_timeout_s,
        max_timeout_s=agent.info.background_timeout_s,
    )
    body.check(info)
    spec = TaskSpec(
        id=new_id(info.name, key),
        agent=info.name,
        request=body.request(info, key),
        fingerprint=body.fingerprint() if key else "",
        traceparent=service.trace(),
    )
    return await _store_run(service, spec, key, response)


async def _store_run(
    service: Service, spec: TaskSpec, key: str | None, response: Response
) -> TaskView:
    service.runner.refuse_if_draining()
    thread_id = spec.request.thread_id
    # A repeated submission owns its thread already.
    if thread_id is not None and (key is None or await service.tasks.get(spec.id) is None):
        await service.conversations.acquire(spec.agent, thread_id, spec.id, _LEASE_S)
    try:
        task, created = await service.tasks.submit(spec)
    except (KeyReused, NoRoom):
        await _release_thread(service, spec)
        raise
    response.headers["Location"] = f"/agent/async/{task.id}"
    response.headers.update(run_headers(task))
    response.headers["Retry-After"] = str(_RETRY_AFTER_S)
    if not created:
        response.headers["Idempotent-Replay"] = "true"
    return TaskView.of(task)


async def _release_thread(service: Service, spec: TaskSpec) -> None:
    """Release the thread of a refused submission, unless the stored run owns it."""
    stored = await service.tasks.get(spec.id)
    thread_id = spec.request.thread_id
    if thread_id is not None and (stored is None or stored.thread_id != thread_id):
        await service.conversations.release(spec.agent, thread_id, spec.id)
