"""Asking an agent and waiting for its answer: `POST /agent` and `POST /agents/{name}`."""

import asyncio
import json
import time
import uuid
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from app.api import problems
from app.api.connection import wait_or_disconnect
from app.api.deps import Service, ServiceDep
from app.api.headers import Key, run_headers
from app.api.responses import RUN_RESPONSES, plain_json
from app.api.schemas import AgentList, AgentView, FinishedRun, RunBody
from app.runs import plain
from app.runs.errors import Disconnected
from app.runs.live import Ended, Run
from app.runs.model import AgentInfo, Mode, Timings
from app.runs.ports import Agent
from app.runs.runner import Runner
from app.runs.tasks import Body

router = APIRouter(tags=["agents"])
ask_options: dict[str, Any] = {
    "response_model": FinishedRun,
    "responses": RUN_RESPONSES,
    "dependencies": [Depends(plain_json)],
}


@router.post("/agent", summary="Ask the default agent", **ask_options)
async def ask_default(
    body: RunBody, request: Request, service: ServiceDep, idempotency_key: Key = None
) -> Response:
    """Run the default agent and wait for its answer."""
    return await _ask(service, service.agent(), body, request, idempotency_key)


@router.post("/agents/{name}", summary="Ask an agent by name", **ask_options)
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
    body.check(agent.info)
    run_id, arrived_at = str(uuid.uuid4()), time.monotonic()
    run_request = body.request(agent.info, key)
    fingerprint = body.fingerprint() if key else ""
    stored = await service.locks.acquire(agent.info, run_request, key, fingerprint, run_id)
    if stored is not None:
        return _replay(stored)
    run = service.runner.start(agent, run_request, Mode.SYNC, run_id, arrived_at)
    service.locks.release_after(run, key)
    ended = await _end_of(run, service.runner, request)
    await service.locks.wait_until_released(run)
    return _response(run, ended)


def _replay(stored: Body) -> Response:
    """The stored answer of the run with the same key."""
    headers = {"X-Run-Id": str(stored["run_id"]), "Idempotent-Replay": "true"}
    if "code" in stored:
        return problems.respond(problems.Problem.model_validate(stored), headers)
    return Response(json.dumps(dict(stored)), headers=headers, media_type="application/json")


async def _end_of(run: Run, runner: Runner, request: Request) -> Ended:
    """Wait for the end of a run; stop the run if the client disconnects."""
    if run.ended.done():
        return run.ended.result()
    try:
        if not await wait_or_disconnect(run.ended, request.receive):
            runner.stop(run, Disconnected())
        return await asyncio.shield(run.ended)
    finally:
        runner.stop(run, Disconnected())  # only if this request itself was cancelled


def _response(run: Run, ended: Ended) -> Response:
    timing = _server_timing(ended.timings, ended.duration_s)
    headers = {**run_headers(run), "Server-Timing": timing}
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
        has_model=info.has_model,
        demo=info.demo,
        default=default,
        iteration_limit=info.iteration_limit,
        early_stopping=info.early_stopping,
        timeout_s=info.timeout_s,
        max_timeout_s=info.max_timeout_s,
        background_timeout_s=info.background_timeout_s,
    )
