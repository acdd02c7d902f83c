"""Health checks for machines: whether the service is alive, started and ready."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from app.api.deps import Service, ServiceDep

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The event loop runs; nothing else is checked."""

    status: Literal["ok"] = "ok"


class Check(BaseModel):
    """One check of readiness. `degraded` leaves the replica ready."""

    state: Literal["ok", "degraded", "failed"]
    detail: str | None = None


class Readiness(BaseModel):
    """Whether this replica should receive requests."""

    status: Literal["ready", "not_ready"]
    demo: bool
    checks: dict[str, Check]


@router.get("/health", summary="Alive")
@router.get("/health/live", summary="Alive")
async def live() -> Alive:
    """Cheap, and never red for load, a model or a store."""
    return Alive()


@router.get("/health/startup", summary="Started", responses={503: {"model": Readiness}})
async def started(service: ServiceDep, response: Response) -> Readiness:
    """Red only while agents are being built."""
    return _answer(service, {"agents": readiness(service)["agents"]}, response)


@router.get("/health/ready", summary="Ready", responses={503: {"model": Readiness}})
async def ready(service: ServiceDep, response: Response) -> Readiness:
    """Red only while agents are being built or the service is draining."""
    return _answer(service, readiness(service), response)


def _answer(service: Service, checks: dict[str, Check], response: Response) -> Readiness:
    red = any(check.state == "failed" for check in checks.values())
    response.status_code = 503 if red else 200
    status: Literal["ready", "not_ready"] = "not_ready" if red else "ready"
    return Readiness(status=status, demo=service.demo, checks=checks)


def readiness(service: Service) -> dict[str, Check]:
    """The checks of readiness, for the response and for `agent_ready`."""
    stats = service.engine.stats if service.engine else None
    store = {} if stats is None else {
        "store": _check(
            stats.reachable and stats.has_room,
            "failed" if service.requires_store else "degraded",
            "the store has no room" if stats.reachable else "the store cannot be reached",
        )
    }  # fmt: skip
    return store | {
        "agents": _check(bool(service.agents), "failed", "the agents are being built"),
        "draining": _check(not service.runner.leaving, "failed", "the service is shutting down"),
        "capacity": _check(not _is_full(service), "degraded", "every slot is in use"),
    }


def _check(ok: bool, otherwise: Literal["degraded", "failed"], why: str) -> Check:
    return Check(state="ok") if ok else Check(state=otherwise, detail=why)


def _is_full(service: Service) -> bool:
    admission = service.runner.admission
    return admission.running >= admission.slots
