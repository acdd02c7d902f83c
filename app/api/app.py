"""Builds the HTTP application from its routers and middleware."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline

from app.api import agent, metrics, openapi, ops, problems, runs, stream, tasks, threads
from app.api.body_limit import BodyLimit
from app.api.deps import Service
from app.api.request_id import HEADER, RequestId

Application: TypeAlias = FastAPI
Lifespan: TypeAlias = Callable[[Application], AbstractAsyncContextManager[None]]

_RUN_ROUTERS = (agent.router, stream.router, tasks.router, threads.router)
_STATUS_ROUTERS = (runs.router, ops.router, metrics.router)

_DESCRIPTION = """Ask LangChain agents over HTTP, with hard deadlines and honest errors.

Errors are `application/problem+json`; decide by `code`. Every response carries `X-Request-Id`,
every response about a run `X-Run-Id`."""


def build(
    service: Service,
    lifespan: Lifespan,
    *,
    on_error: Callable[[Exception], None],
    on_refused: Callable[[str], None],
    max_body_bytes: int,
    docs: bool,
    cors_origins: Sequence[str] = (),
    accepts_runs: bool = True,
) -> Application:
    """The application. `lifespan` builds the agents and drains at the end.

    With `accepts_runs` false, as in a pure worker, it serves only health, metrics and `/runs`.
    """
    app = FastAPIOffline(
        docs_url="/docs" if docs else None,
        redoc_url=None,
        title="Watchkeeper",
        version=service.version,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        # Its spans would duplicate ours, and its logs contain the input of callers.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    routers = (*(_RUN_ROUTERS if accepts_runs else ()), *_STATUS_ROUTERS)
    pages = [*app.routes]
    for router in routers:
        app.include_router(router)
    problems.install(
        app, [*pages, *(route for router in routers for route in router.routes)], on_refused
    )
    openapi.install(app)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=[
                HEADER,
                "X-Run-Id",
                "Server-Timing",
                "Retry-After",
                "Location",
                "Link",
                "Idempotent-Replay",
            ],
        )
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    app.add_middleware(RequestId, on_error=on_error)
    return app


def routes() -> list[str]:
    """The template of every path that is served."""
    served = (
        getattr(route, "path", "")
        for router in (*_RUN_ROUTERS, *_STATUS_ROUTERS)
        for route in router.routes
    )
    return sorted({*served, "/openapi.json", "/docs"} - {""})
