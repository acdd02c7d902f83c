"""Asking an agent and waiting for its answer: `POST /agent` and `POST /agents/{name}`."""

import asyncio
import json
import time
import uuid
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.exceptions import HTTPException

from app.api import problems
from app.api.claims import Key
from app.api.deps import Service, ServiceDep
from app.api.headers import about
from app.api.schemas import AgentList, AgentView, FinishedRun, RunBody
from app.runs import plain
from app.runs.errors import Disconnected, InvalidRequest
from app.runs.live import Ended, Run
from app.runs.model import AgentInfo, Mode, Timings
from app.runs.ports import Agent
from app.runs.runner import Runner
from app.runs.tasks import Body


def _problem(description: str) -> dict[str, Any]:
    return {"model": problems.Problem, "description": description}


RUN_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: _problem("`invalid_json`"),
    404: _problem("`not_found`: no agent of that name"),
    409: _problem("`in_flight`: a run with this key, or on this thread, has not ended"),
    413: _problem("`too_large`"),
    415: _problem("`unsupported_media_type`"),
    422: _problem("`invalid_request`: `errors` says what was wrong; or `key_reused`"),
    500: _problem("`model_failed`, `agent_failed` or `interrupted`"),
    503: _problem(
        "`overloaded`, `draining` or `store_unavailable` (with `Retry-After`), or `cancelled`"
    ),
    504: _problem("`timeout`: `phase` says what held the run"),
}


async def plain_json(request: Request) -> None:
    """Refuses a body that is not declared as JSON, or is encoded."""
    if not problems.sends_plain_json(request):
        raise HTTPException(415)


router = APIRouter(tags=["agents"])
asking: dict[str, Any] = {
    "response_model": FinishedRun,
    "responses": RUN_RESPONSES,
    "dependencies": [Depends(plain_json)],
}


@router.post("/agent", summary="Ask the default agent", **asking)
async def ask_default(
    body: RunBody, request: Request, service: ServiceDep, idempotency_key: Key = None
) -> Response:
    """Run the default agent and wait for its answer."""
    return await _ask(service, service.agent(), body, request, idempotency_key)


@router.post("/agents/{name}", summary="Ask an agent by name", **asking)
async def ask_named(
    name: str, body: RunBody, request: Request, service: ServiceDep, idempotency_key: Key = None
) -> Response:
    """Run one agent and wait for its answer."""
    return await _ask(service, service.agent(name), body, request, idempotency_key)


@router.get("/agents", summary="The agents served")
async def list_agents(service: ServiceDep) -> AgentList:
    """The agents served, the default one first."""
    infos = [agent.info for agent in service.agents.values()]
    return AgentList(agents=[_view(info, default=info is infos[0]) for info in infos])


async def _ask(
    service: Service, agent: Agent, body: RunBody, request: Request, key: str | None
) -> Response:
    check_limits(body, agent.info)
    run_id, arrived_at = str(uuid.uuid4()), time.monotonic()
    known = await service.claims.take(agent.info, body, key, run_id)
    if known is not None:
        return _replay(known)
    asked = body.request(agent.info, key)
    run = service.runner.start(agent, asked, Mode.SYNC, run_id, arrived_at)
    service.claims.hold(run, key)
    ended = await _end_of(run, service.runner, request)
    await service.claims.wait_until_released(run)
    return _response(run, ended)


def _replay(known: Body) -> Response:
    """What a run with the same key was answered."""
    headers = {"X-Run-Id": str(known["run_id"]), "Idempotent-Replay": "true"}
    if "code" in known:
        return problems.respond(problems.Problem.model_validate(known), headers)
    return Response(json.dumps(dict(known)), headers=headers, media_type="application/json")


def check_limits(body: RunBody, agent: AgentInfo) -> None:
    """Raises InvalidRequest, naming the limit, when a caller asks for more than there is."""
    if body.timeout is not None and body.timeout > agent.max_timeout_s:
        raise InvalidRequest("timeout", f"must be at most {agent.max_timeout_s:g} seconds")
    if body.max_iterations is not None and body.max_iterations > agent.iteration_limit:
        raise InvalidRequest("max_iterations", f"must be at most {agent.iteration_limit}")
    if body.thread_id is not None and not agent.conversations:
        raise InvalidRequest("thread_id", "this agent keeps no conversations")


async def _end_of(run: Run, runner: Runner, request: Request) -> Ended:
    """Wait for the end of a run; a client that leaves ends it."""
    ended = run.ended
    if ended.done():
        return ended.result()
    try:
        if not await watched(ended, request):
            runner.stop(run, Disconnected())
        return await asyncio.shield(ended)
    finally:
        runner.stop(run, Disconnected())  # only if this request itself was cancelled


async def watched(awaited: asyncio.Future[Any], request: Request) -> bool:
    """Wait for something; false when the client left before it came."""
    gone = asyncio.ensure_future(_disconnected(request))
    either: set[asyncio.Future[Any]] = {awaited, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
    return awaited.done()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(run: Run, ended: Ended) -> Response:
    timing = _server_timing(ended.timings, ended.duration_s)
    headers = {**about(run), "Server-Timing": timing}
    if ended.error is not None:
        headers |= problems.retry_headers(ended.error)
        return problems.respond(problems.of_run(run, ended), headers)
    body = FinishedRun.of(run, ended).model_dump_json()
    return Response(body, headers=headers, media_type="application/json")


def _server_timing(timings: Timings, duration_s: float) -> str:
    parts = {
        "queue": timings.queue_s,
        "llm": timings.llm_s,
        "tools": timings.tools_s,
        "total": duration_s,
    }
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in parts.items())


def _view(info: AgentInfo, *, default: bool) -> AgentView:
    return AgentView(
        name=info.name,
        description=plain.sendable(info.description),
        kind=info.kind,
        tools=[plain.name(tool) for tool in info.tools],
        model=None if info.model is None else plain.name(info.model),
        demo=info.demo,
        default=default,
        iteration_limit=info.iteration_limit,
        early_stopping=info.early_stopping,
        timeout_s=info.timeout_s,
        max_timeout_s=info.max_timeout_s,
        background_timeout_s=info.background_timeout_s,
    )
