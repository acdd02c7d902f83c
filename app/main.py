"""The composition root: builds every part, joins them, opens and closes them in order."""

import asyncio
import gc
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from app import settings as configuration
from app.agents import leaks, registry
from app.agents.upstream import UPSTREAM
from app.api import app as http
from app.api.deps import Service
from app.api.server import Server, listen
from app.runs.admission import Admission
from app.runs.runner import Runner
from app.runs.threads import RunThreads
from app.settings import Docs, LogFormat, Settings
from app.telemetry import logs
from app.telemetry.fanout import Fanout

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Cyclic garbage is what graphs leave behind; scanning what was built at start for it, at the
# default thresholds, takes about a fifth of a run's processor time.
_GC_THRESHOLDS = (50_000, 20, 100)


def create_app(
    settings: Settings | None = None, agents: Sequence[str] | None = None
) -> http.Application:
    """The application for any ASGI server: `uvicorn --factory app.main:create_app`.

    Without arguments it reads WATCHKEEPER_CONFIG (a file) and WATCHKEEPER_SERVE (import strings
    separated by commas; the demo agent where it is not set).
    """
    if settings is None:
        file = os.environ.get(configuration.CONFIG_VARIABLE)
        settings = configuration.read(Path(file) if file else None)
    if agents is None:
        agents = [a for a in os.environ.get(configuration.AGENTS_VARIABLE, "").split(",") if a]
    start_logs(settings)
    return application(settings, assemble(settings), agents)


def assemble(settings: Settings) -> Service:
    """Every part of a service, joined but not started."""
    threads = RunThreads(settings.tool_threads)
    admission = Admission(settings.max_running_runs, settings.max_queued_runs)
    runner = Runner(admission, threads, Fanout(logs=logs.write), settings.keep_finished_runs)
    return Service(runner=runner, threads=threads, version=version("watchkeeper"))


async def load_agents(settings: Settings, agents: Sequence[str], service: Service) -> None:
    """Build the agents on this loop, whose default threads become the service's.

    Raises `registry.AgentLoadError`.
    """
    asyncio.get_running_loop().set_default_executor(service.threads)
    registry.import_from_working_directory()
    service.agents = await registry.load(agents, settings.served)
    for switch in leaks.switches(service.agents):
        logs.say("warning", "content_leaves", how=switch)
    if service.demo:
        logs.say("warning", "demo_model_in_use", agents=list(service.agents))


async def serve(settings: Settings, agents: Sequence[str]) -> None:
    """Serve until a signal. Raises AgentLoadError or CannotListen before anything is served."""
    service = assemble(settings)
    await load_agents(settings, agents, service)
    listener = listen(settings.host, settings.port)
    runner = service.runner
    app = application(settings, service, agents)
    server = Server(app, lambda: runner.drain(settings.drain_notice_s, settings.drain_s))
    _announce(settings, service, listener.getsockname()[1])
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    await server.serve(sockets=[listener])


def start_logs(settings: Settings) -> None:
    """Open the log."""
    on_terminal = sys.stdout.isatty()
    json = settings.log_format is LogFormat.JSON or (
        settings.log_format is LogFormat.AUTO and not on_terminal
    )
    logs.start(json=json, level=settings.log_level, version=version("watchkeeper"))
    for name in configuration.unknown_variables(os.environ):
        logs.say("warning", "unknown_setting", variable=name)


def application(settings: Settings, service: Service, agents: Sequence[str]) -> http.Application:
    """The HTTP application of a service; its lifespan builds agents that are not built yet."""

    @asynccontextmanager
    async def lifespan(_: http.Application) -> AsyncIterator[None]:
        if not service.agents:
            await load_agents(settings, agents, service)
        logs.say("info", "service_started", agents=list(service.agents))
        try:
            yield
        finally:
            await service.runner.drain(0.0, 0.0)
            await UPSTREAM.aclose()
            service.threads.shutdown(wait=False)
            logs.say("info", "service_stopped")

    return http.build(
        service,
        lifespan,
        on_error=lambda error: logs.failed("request_failed", error),
        max_body_bytes=settings.max_body_bytes,
        docs=settings.docs is Docs.ON
        or (settings.docs is Docs.AUTO and settings.host in _LOOPBACK),
        cors_origins=settings.cors_origins,
    )


def _announce(settings: Settings, service: Service, port: int) -> None:
    """Tell the person at the terminal what is served and what to try; the log is for machines."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    names = ", ".join(f"{a.info.name} ({a.info.kind})" for a in service.agents.values())
    question = "Where is order 10023?" if service.demo else "…"
    lines = [
        f"Watchkeeper {service.version} serves {names} on {url}",
        *(["The demo model answers: no language model is configured."] if service.demo else []),
        "Try:",
        f"  curl -s {url}/agent -H 'content-type: application/json' \\",
        f'    -d \'{{"question": "{question}"}}\'',
        f"  curl -s {url}/runs",
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)
