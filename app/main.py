"""The composition root: builds every part, joins them, opens and closes them in order."""

import asyncio
import gc
import multiprocessing
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from app import settings as configuration
from app.agents import leaks, registry
from app.agents.conversations import InMemoryThreads
from app.agents.factories import Factories
from app.agents.models import upstream
from app.agents.models.upstream import Upstream
from app.api import app as http
from app.api.deps import Role, Service
from app.api.ops import readiness
from app.api.server import Server, listen
from app.durable import Durable
from app.runs import containment
from app.runs.admission import Admission
from app.runs.prices import Prices
from app.runs.runner import Runner
from app.runs.threads import RunThreads
from app.settings import Docs, LogFormat, Settings, SettingsError
from app.telemetry import catalogue, lines
from app.telemetry.export import current_trace, instance_id, outgoing_headers
from app.telemetry.http import HttpMetrics, instrument
from app.telemetry.logs import Log
from app.telemetry.pipeline import Gauges, Pipeline

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Graphs leave cyclic garbage. At the default thresholds the collector also scans all objects built
# at start, which takes about a fifth of a run's processor time.
_GC_THRESHOLDS = (50_000, 20, 100)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a service, joined but not started."""

    settings: Settings
    log: Log
    service: Service
    pipeline: Pipeline
    durable: Durable | None
    factories: Factories
    upstream: Upstream


def create_app(
    settings: Settings | None = None, agents: Sequence[str] | None = None
) -> http.Application:
    """Return the application for any ASGI server: `uvicorn --factory app.main:create_app`.

    Without arguments it reads WATCHKEEPER_CONFIG (a file) and WATCHKEEPER_SERVE (import strings,
    separated by commas). If WATCHKEEPER_SERVE is not set, it serves the demo agent.
    """
    _refuse_workers(sys.argv)
    if settings is None:
        file = os.environ.get(configuration.CONFIG_VARIABLE)
        settings = configuration.read(Path(file) if file else None)
    if agents is None:
        agents = [a for a in os.environ.get(configuration.AGENTS_VARIABLE, "").split(",") if a]
    parts = assemble(settings)
    start_logs(parts)
    parts.pipeline.set_global_tracer_provider()
    return application(parts, agents)


def assemble(settings: Settings, log: Log | None = None) -> Parts:
    """Build every part of a service. Raises SettingsError for an invalid table of prices."""
    log = log or Log()
    pipeline = Pipeline(version("watchkeeper"), log)
    threads = RunThreads(settings.tool_threads)
    try:
        prices = Prices.load(settings.prices_file)
    except ValueError as wrong:
        raise SettingsError(f"{configuration.variable('prices_file')}: {wrong}") from wrong
    runner = Runner(
        Admission(settings.max_running_runs, settings.max_queued_runs),
        threads,
        pipeline.emit,
        settings.keep_finished_runs,
        price=prices.cost,
        fault=lambda: pipeline.fault("handler"),
        trace=current_trace,
    )
    durable = Durable.of(settings, runner, log) if settings.store is not None else None
    service = Service(
        runner,
        threads,
        version("watchkeeper"),
        pipeline.render,
        durable.threads if durable else InMemoryThreads(),
        engine=durable.engine if durable else None,
        keys=durable.keys if durable else None,
        write_timeout_s=settings.stream_write_s,
        trace=current_trace,
        ready_requires_store="store" in settings.ready_requires,
    )
    factories = Factories(
        settings.factory_s,
        died=lambda name, error: log.failed(lines.FACTORY_ENDED, error, agent=name),
        not_closed=lambda name, error: log.failed(lines.FACTORY_NOT_CLOSED, error, agent=name),
        slow=partial(_report_slow, log),
    )
    pool = upstream.current()
    pool.outgoing_headers = outgoing_headers
    return Parts(settings, log, service, pipeline, durable, factories, pool)


async def load_agents(parts: Parts, agents: Sequence[str]) -> None:
    """Build the agents on this loop, and make the service's threads the default of the loop.

    The resources of the agents stay open until `parts.factories` is closed. Raises
    `registry.AgentLoadError`.
    """
    service, loop = parts.service, asyncio.get_running_loop()
    loop.set_default_executor(service.threads)
    containment.contain(loop)
    registry.import_from_working_directory()
    upstream.use(parts.upstream)
    try:
        service.agents = await registry.load(agents, parts.settings.served, parts.factories)
    except registry.AgentLoadError:
        await parts.factories.close()
        raise
    for switch in leaks.switches(service.agents):
        parts.log.log("warning", lines.CONTENT_LEAVES, how=switch)
    for name, agent in service.agents.items():
        if not agent.info.has_model:
            parts.log.log("warning", lines.NO_MODEL, agent=name)
    if service.demo:
        parts.log.log("warning", lines.DEMO_IN_USE, agents=list(service.agents))


async def serve(
    settings: Settings, agents: Sequence[str], role: Role = Role.BOTH, log: Log | None = None
) -> None:
    """Serve until a signal.

    Raises AgentLoadError, SettingsError, CannotListen or CannotOpenStore before it takes requests.
    """
    parts = assemble(settings, log)
    parts.service.role = role
    start_logs(parts)
    parts.pipeline.set_global_tracer_provider()
    try:
        await load_agents(parts, agents)
        listener = listen(settings.host, settings.port)
        # Opened here: the server would report a failure in its own form.
        async with lifespan(parts, agents):
            server = Server(_application(parts, lambda _: nullcontext()), lambda: _drain(parts))
            _announce(parts, listener.getsockname()[1])
            gc.freeze()
            gc.set_threshold(*_GC_THRESHOLDS)
            gc.enable()
            await server.serve(sockets=[listener])
    finally:
        await parts.factories.close()
        parts.log.stop()


def start_logs(parts: Parts) -> None:
    """Open the log."""
    wanted = parts.settings.log_format
    on_terminal = sys.stdout.isatty()
    parts.log.start(
        json=wanted is LogFormat.JSON or (wanted is LogFormat.AUTO and not on_terminal),
        level=parts.settings.log_level,
        version=parts.service.version,
        instance=instance_id(),
        on_drop=parts.pipeline.log_dropped,
    )
    for name in configuration.unknown_variables(os.environ):
        parts.log.log("warning", lines.UNKNOWN_SETTING, variable=name)


def application(parts: Parts, agents: Sequence[str]) -> http.Application:
    """Return the HTTP application. Its lifespan builds the agents if they are not built."""
    return _application(parts, lambda _: lifespan(parts, agents))


@asynccontextmanager
async def lifespan(parts: Parts, agents: Sequence[str]) -> AsyncIterator[None]:
    """Open every part, and close them in order. Raises AgentLoadError or CannotOpenStore."""
    service, pipeline = parts.service, parts.pipeline
    if not service.agents:
        await load_agents(parts, agents)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(parts.log.unhandled)
    containment.contain(loop)
    infos = [agent.info for agent in service.agents.values()]
    gauges, commit = _gauges(parts), parts.settings.commit
    pipeline.open(infos, routes=http.routes(), gauges=gauges, commit=commit)
    pipeline.monitor_loop()
    try:
        async with AsyncExitStack() as open_parts:
            if parts.durable is not None:
                await open_parts.enter_async_context(parts.durable.opened(service))
            parts.log.log("info", lines.SERVICE_STARTED, agents=list(service.agents))
            yield
            if parts.durable is not None:
                parts.durable.engine.stop_taking_runs()
            await service.runner.drain(0.0, 0.0)
            await service.locks.close()
    finally:
        await parts.factories.close()
        containment.release(loop)
        await parts.upstream.aclose()
        await pipeline.close()
        service.threads.shutdown(wait=False)
        parts.log.log("info", lines.SERVICE_STOPPED)
        parts.log.written()


def _application(parts: Parts, opened: http.Lifespan) -> http.Application:
    settings, service, pipeline = parts.settings, parts.service, parts.pipeline
    app = http.build(
        service,
        opened,
        on_error=lambda error: parts.log.failed(lines.REQUEST_FAILED, error),
        on_refused=pipeline.refused,
        max_body_bytes=settings.max_body_bytes,
        docs=settings.docs is Docs.ON
        or (settings.docs is Docs.AUTO and settings.host in _LOOPBACK),
        cors_origins=settings.cors_origins,
        accepts_runs=service.role is not Role.WORKER,
    )
    app.add_middleware(HttpMetrics, metrics=lambda: pipeline.metrics, log=parts.log)
    if pipeline.export is not None:
        instrument(app, pipeline.export.provider)
    return app


def _refuse_workers(arguments: Sequence[str]) -> None:
    """Children of uvicorn have its `--workers N` among their arguments."""
    workers = dict(zip(arguments, [*arguments[1:], ""], strict=True)).get("--workers", "1")
    if multiprocessing.parent_process() is not None and workers not in ("", "1"):
        raise SettingsError(
            f"--workers {workers} asks for several server processes in one command, which would "
            "each have their own metrics and slots: run several services."
        )


async def _drain(parts: Parts) -> None:
    settings = parts.settings
    parts.log.log("info", lines.SERVICE_DRAINING, in_flight=len(parts.service.runner.in_flight))
    if parts.durable is not None:
        parts.durable.engine.stop_taking_runs()
    await parts.service.runner.drain(settings.drain_notice_s, settings.drain_s)
    if parts.durable is not None:
        # Last, so that callers get the answers of runs that ended meanwhile.
        await parts.durable.engine.release_waiters()


def _report_slow(log: Log, agent: str, waited_s: float) -> None:
    """Log it; before the log is open, as in a check, write to the terminal."""
    if log.is_open():
        log.log("warning", lines.FACTORY_SLOW, agent=agent, waited_s=waited_s)
    else:
        sentence = f"watchkeeper: Waiting for the factory of {agent}, for {waited_s:g} s now."
        print(sentence, file=sys.stderr, flush=True)


def _gauges(parts: Parts) -> Gauges:
    """Return the gauges that each scrape reads from the parts."""
    service = parts.service
    runner, threads = service.runner, service.threads
    stored = parts.durable.gauges(service) if parts.durable else {}
    return {
        **stored,
        catalogue.THREADS_BUSY: lambda: {(): threads.busy},
        catalogue.THREADS_ABANDONED: lambda: {(): threads.abandoned},
        catalogue.THREADS_LIMIT: lambda: {(): threads.limit},
        catalogue.TASKS_ABANDONED: lambda: {(): runner.stuck_tasks},
        catalogue.CONCURRENCY_LIMIT: lambda: {(): runner.admission.slots},
        catalogue.READY: lambda: {
            (name,): float(check.state == "ok") for name, check in readiness(service).items()
        },
    }


def _announce(parts: Parts, port: int) -> None:
    """Print what is served and what to try. This is for people; the log is for machines."""
    settings, service = parts.settings, parts.service
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    names = ", ".join(f"{a.info.name} ({a.info.kind})" for a in service.agents.values())
    question = "Where is order 10023?" if service.demo else "…"
    is_worker = service.role is Role.WORKER
    does = f"executes background runs of {names}" if is_worker else f"serves {names} on {url}"
    ask = [
        f"  curl -s {url}/agent -H 'content-type: application/json' \\",
        f'    -d \'{{"question": "{question}"}}\'',
    ]
    announcement = [
        f"Watchkeeper {service.version} {does}",
        *([f"Background runs are stored in {parts.durable.where}"] if parts.durable else []),
        *(["The demo model answers: no language model is configured."] if service.demo else []),
        *([f"A worker takes no questions; it serves its metrics on {url}"] if is_worker else []),
        "Try:",
        *([f"  curl -s {url}/health/ready"] if is_worker else ask),
        f"  curl -s {url}/runs",
        f"  curl -s {url}/metrics",
    ]
    print("\n".join(announcement), file=sys.stderr, flush=True)
