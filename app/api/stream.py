"""Runs as streams: `POST /agent/stream`, and following the events of any run."""

import asyncio
import time
import uuid
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, Field, RootModel

from app.api import problems
from app.api.connection import wait_or_disconnect
from app.api.deps import Service, ServiceDep
from app.api.headers import Key, run_headers
from app.api.responses import RUN_RESPONSES, plain_json
from app.api.schemas import FinishedRun, RunBody
from app.api.sse import Replay, RunStream
from app.api.task_events import follow as follow_task
from app.runs.errors import Disconnected, NotFound
from app.runs.live import Run
from app.runs.model import CallOutcome, Mode
from app.runs.ports import Agent


class RunBegan(BaseModel):
    """`run`: always first. A replay has no deadline; the replay of a failure has only the ids."""

    run_id: str
    trace_id: str | None
    agent: str | None
    deadline_s: float | None
    iteration_limit: int | None
    demo: bool | None


class TokenSaid(BaseModel):
    """`token`: streaming text of a model; `agent` is null unless a sub-agent sends it."""

    text: str
    iteration: int
    agent: str | None


class ToolBegan(BaseModel):
    """`tool_start`."""

    tool: str
    call_id: str
    iteration: int


class ToolEnded(BaseModel):
    """`tool_end`."""

    tool: str
    call_id: str
    outcome: CallOutcome
    duration_s: float


class IterationEnded(BaseModel):
    """`iteration`: a turn asked for tools; the text before it is not the answer."""

    iteration: int
    tool_calls: int


class Retract(BaseModel):
    """`retract`: delete the text since the start of that iteration; it will be sent again."""

    iteration: int


class Gap(BaseModel):
    """`gap`: the events after `after` are evicted; the next event has the id `next`."""

    after: int
    next: int


class Events(RootModel[Any]):
    """Named events, each with an `id` and one JSON object as data; `end` is always last."""

    root: (
        RunBegan | TokenSaid | ToolBegan | ToolEnded | IterationEnded | Retract | Gap
        | problems.Problem | FinishedRun
    ) = Field(
        description="By event: run, token, tool_start, tool_end, iteration, retract, gap, error "
        "(the problem), end (the finished run or the problem)."
    )  # fmt: skip


class OnDisconnect(StrEnum):
    """What happens to the run if its reader disconnects."""

    CANCEL = "cancel"
    CONTINUE = "continue"


STREAM: dict[str, Any] = {
    "model": Events,
    "description": "Server-Sent Events.",
    "content": {"text/event-stream": {}},
}
_stream_options: dict[str, Any] = {
    "response_class": Response,
    "responses": {**RUN_RESPONSES, 200: STREAM},
    "dependencies": [Depends(plain_json)],
}
router = APIRouter(tags=["streams"])
Policy = Annotated[OnDisconnect, Query(description="`continue` lets the run finish.")]


@router.post("/agent/stream", summary="Ask the default agent, as a stream", **_stream_options)
async def stream_default(
    body: RunBody,
    request: Request,
    service: ServiceDep,
    on_disconnect: Policy = OnDisconnect.CANCEL,
    idempotency_key: Key = None,
) -> Response:
    """Run the default agent and send its events as they happen."""
    caller = Caller(request, on_disconnect, idempotency_key)
    return await _stream(service, service.agent(), body, caller)


@router.post("/agents/{name}/stream", summary="Ask an agent, as a stream", **_stream_options)
async def stream_named(
    name: str,
    body: RunBody,
    request: Request,
    service: ServiceDep,
    on_disconnect: Policy = OnDisconnect.CANCEL,
    idempotency_key: Key = None,
) -> Response:
    """Run one agent and send its events as they happen."""
    caller = Caller(request, on_disconnect, idempotency_key)
    return await _stream(service, service.agent(name), body, caller)


@router.get(
    "/runs/{run_id}/events",
    summary="Follow a run",
    response_class=Response,
    responses={
        200: STREAM,
        204: {"description": "The run has ended, and that event was its last."},
        404: {"model": problems.Problem, "description": "`not_found`"},
        422: {"model": problems.Problem, "description": "`invalid_request`"},
        503: {"model": problems.Problem, "description": "`store_unavailable` (with `Retry-After`)"},
    },
)
async def follow(
    run_id: str,
    service: ServiceDep,
    last_event_id: Annotated[str | None, Header(pattern=r"^\d{1,15}$")] = None,
) -> Response:
    """The events of a run, from its first or after `Last-Event-ID`.

    A disconnect does not stop the run.
    """
    run = service.runner.find(run_id)
    if service.engine is not None and (run is None or run.attempt is not None):
        return await follow_task(service, run_id, last_event_id)
    if run is None or (run.ring.closed and (_is_answer_deleted(run) or not run.ring.last_id)):
        raise NotFound
    after = int(last_event_id or 0)
    if run.ring.closed and not run.ring.since(after):
        return Response(status_code=204, headers=run_headers(run))  # browsers then stop
    return RunStream(run, service.runner.emit, service.write_timeout_s, lambda: None, after)


def _is_answer_deleted(run: Run) -> bool:
    """Whether the archive has deleted the answer: of an old run, or of one with mode sync."""
    ended = run.ended.result() if run.ended.done() else None
    return ended is not None and ended.error is None and ended.answer is None


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a stream and its options."""

    request: Request
    on_disconnect: OnDisconnect
    key: str | None


async def _stream(service: Service, agent: Agent, body: RunBody, caller: Caller) -> Response:
    body.check(agent.info)
    runner, locks = service.runner, service.locks
    run_id, arrived_at = str(uuid.uuid4()), time.monotonic()
    run_request = body.request(agent.info, caller.key)
    fingerprint = body.fingerprint() if caller.key else ""
    stored = await locks.acquire(agent.info, run_request, caller.key, fingerprint, run_id)
    if stored is not None:
        return Replay(stored, runner.emit, service.write_timeout_s)
    run = runner.start(agent, run_request, Mode.STREAM, run_id, arrived_at)
    locks.release_after(run, caller.key)

    def on_reader_lost() -> None:
        if caller.on_disconnect is OnDisconnect.CANCEL:
            runner.stop(run, Disconnected())

    if not await wait_or_disconnect(run.admitted, caller.request.receive):
        on_reader_lost()
        await asyncio.shield(run.admitted)
    ended = run.ended.result() if run.ended.done() else None
    if not run.admitted.result() and ended is not None and ended.error is not None:
        await locks.wait_until_released(run)
        headers = {**run_headers(run), **problems.retry_headers(ended.error)}
        return problems.respond(problems.of_run(run, ended), headers)
    before_end = partial(locks.wait_until_released, run)
    return RunStream(
        run, runner.emit, service.write_timeout_s, on_reader_lost, before_end=before_end
    )
