"""The composition root: builds every part, joins them, opens and closes them in order."""

import asyncio
import gc
import multiprocessing
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from app import settings as configuration
from app.agents import leaks, registry
from app.agents.conversations import InMemory
from app.agents.factories import Factories
from app.agents.upstream import UPSTREAM
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
from app.telemetry import catalogue, lines, logs
from app.telemetry.export import current_trace, instance_id, outgoing_headers
from app.telemetry.http import WatchHttp, instrument
from app.telemetry.pipeline import Gauges, Pipeline

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Cyclic garbage is what graphs leave behind; scanning what was built at start for it, at the
# default thresholds, takes about a fifth of a run's processor time.
_GC_THRESHOLDS = (50_000, 20, 100)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a service is made of, joined but not started."""

    settings: Settings
    service: Service
    pipeline: Pipeline
    durable: Durable | None
    factories: Factories


def create_app(
    settings: Settings | None = None, agents: Sequence[str] | None = None
) -> http.Application:
    """The application for any ASGI server: `uvicorn --factory app.main:create_app`.

    Without arguments it reads WATCHKEEPER_CONFIG (a file) and WATCHKEEPER_SERVE (import strings
    separated by commas; the demo agent where it is not set).
    """
    _refuse_workers(sys.argv)
    if settings is None:
        file = os.environ.get(configuration.CONFIG_VARIABLE)
        settings = configuration.read(Path(file) if file else None)
    if agents is None:
        agents = [a for a in os.environ.get(configuration.AGENTS_VARIABLE, "").split(",") if a]
    parts = assemble(settings)
    start_logs(parts)
    parts.pipeline.lead()
    return application(parts, agents)


def assemble(settings: Settings) -> Parts:
    """Every part of a service. Raises SettingsError for a table of prices that is none."""
    pipeline = Pipeline(version("watchkeeper"))
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
    durable = Durable.of(settings, runner) if settings.store is not None else None
    service = Service(
        runner,
        threads,
        version("watchkeeper"),
        pipeline.render,
        durable.threads if durable else InMemory(),
        engine=durable.engine if durable else None,
        keys=durable.keys if durable else None,
        write_timeout_s=settings.stream_write_s,
        trace=current_trace,
        ready_requires_store="store" in settings.ready_requires,
    )
    UPSTREAM.outgoing_headers = outgoing_headers
    factories = Factories(
        settings.factory_s,
        died=lambda name, error: logs.failed(lines.FACTORY_ENDED, error, agent=name),
        not_closed=lambda name, error: logs.failed(lines.FACTORY_NOT_CLOSED, error, agent=name),
        slow=_report_slow,
    )
    return Parts(settings, service, pipeline, durable, factories)


async def load_agents(parts: Parts, agents: Sequence[str]) -> None:
    """Build the agents on this loop, whose default threads become the service's.

    What they open is open until `parts.factories` is closed. Raises `registry.AgentLoadError`.
    """
    service, loop = parts.service, asyncio.get_running_loop()
    loop.set_default_executor(service.threads)
    containment.contain(loop)
    registry.import_from_working_directory()
    try:
        service.agents = await registry.load(agents, parts.settings.served, parts.factories)
    except registry.AgentLoadError:
        await parts.factories.close()
        raise
    for switch in leaks.switches(service.agents):
        logs.log("warning", lines.CONTENT_LEAVES, how=switch)
    if service.demo:
        logs.log("warning", lines.DEMO_IN_USE, agents=list(service.agents))


async def serve(settings: Settings, agents: Sequence[str], role: Role = Role.BOTH) -> None:
    """Serve until a signal.

    Raises AgentLoadError, SettingsError, CannotListen or CannotOpenStore before anything is
    served.
    """
    parts = assemble(settings)
    parts.service.role = role
    start_logs(parts)
    parts.pipeline.lead()
    try:
        await load_agents(parts, agents)
        listener = listen(settings.host, settings.port)
        # Opened here, and not by the server, which would tell of a failure in its own way.
        async with lifespan(parts, agents):
            server = Server(_application(parts, lambda _: nullcontext()), lambda: _drain(parts))
            _announce(parts, listener.getsockname()[1])
            gc.freeze()
            gc.set_threshold(*_GC_THRESHOLDS)
            gc.enable()
            await server.serve(sockets=[listener])
    finally:
        await parts.factories.close()
        logs.stop()


def start_logs(parts: Parts) -> None:
    """Open the log."""
    wanted = parts.settings.log_format
    on_terminal = sys.stdout.isatty()
    logs.start(
        json=wanted is LogFormat.JSON or (wanted is LogFormat.AUTO and not on_terminal),
        level=parts.settings.log_level,
        version=parts.service.version,
        instance=instance_id(),
        on_drop=parts.pipeline.log_dropped,
    )
    for name in configuration.unknown_variables(os.environ):
        logs.log("warning", lines.UNKNOWN_SETTING, variable=name)


def application(parts: Parts, agents: Sequence[str]) -> http.Application:
    """The HTTP application of a service; its lifespan builds agents that are not built yet."""
    return _application(parts, lambda _: lifespan(parts, agents))


@asynccontextmanager
async def lifespan(parts: Parts, agents: Sequence[str]) -> AsyncIterator[None]:
    """Open every part, and close them in order. Raises AgentLoadError or CannotOpenStore."""
    service, pipeline = parts.service, parts.pipeline
    if not service.agents:
        await load_agents(parts, agents)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(logs.unhandled)
    containment.contain(loop)
    infos = [agent.info for agent in service.agents.values()]
    gauges, commit = _gauges(parts), parts.settings.commit
    pipeline.open(infos, routes=http.routes(), gauges=gauges, commit=commit)
    pipeline.watch_loop()
    try:
        async with AsyncExitStack() as open_parts:
            if parts.durable is not None:
                await open_parts.enter_async_context(parts.durable.opened(service))
            logs.log("info", lines.SERVICE_STARTED, agents=list(service.agents))
            yield
            if parts.durable is not None:
                parts.durable.engine.leave()
            await service.runner.drain(0.0, 0.0)
            await service.locks.close()
    finally:
        await parts.factories.close()
        containment.release(loop)
        await UPSTREAM.aclose()
        await pipeline.close()
        service.threads.shutdown(wait=False)
        logs.log("info", lines.SERVICE_STOPPED)
        logs.written()


def _application(parts: Parts, opened: http.Lifespan) -> http.Application:
    settings, service, pipeline = parts.settings, parts.service, parts.pipeline
    app = http.build(
        service,
        opened,
        on_error=lambda error: logs.failed(lines.REQUEST_FAILED, error),
        on_refused=pipeline.refused,
        max_body_bytes=settings.max_body_bytes,
        docs=settings.docs is Docs.ON
        or (settings.docs is Docs.AUTO and settings.host in _LOOPBACK),
        cors_origins=settings.cors_origins,
        accepts_runs=service.role is not Role.WORKER,
    )
    app.add_middleware(WatchHttp, metrics=lambda: pipeline.metrics)
    if pipeline.export is not None:
        instrument(app, pipeline.export.provider)
    return app


def _refuse_workers(arguments: Sequence[str]) -> None:
    """uvicorn's own `--workers N` reaches its children as their arguments."""
    given = dict(zip(arguments, [*arguments[1:], ""], strict=True)).get("--workers", "1")
    if multiprocessing.parent_process() is not None and given not in ("", "1"):
        raise SettingsError(
            f"--workers {given} asks for several server processes in one command, which would "
            "each keep their own metrics and places: run several services."
        )


async def _drain(parts: Parts) -> None:
    settings = parts.settings
    logs.log("info", lines.SERVICE_DRAINING, in_flight=len(parts.service.runner.in_flight))
    if parts.durable is not None:
        parts.durable.engine.leave()
    await parts.service.runner.drain(settings.drain_notice_s, settings.drain_s)
    if parts.durable is not None:
        # Last, so that whoever waits for a run that ended meanwhile has its answer.
        await parts.durable.engine.release_waiters()


def _report_slow(agent: str, waited_s: float) -> None:
    """Before the log is open, as in a check, it is the person at the terminal who waits."""
    if logs.is_open():
        logs.log("warning", lines.FACTORY_SLOW, agent=agent, waited_s=waited_s)
    else:
        sentence = f"watchkeeper: Waiting for the factory of {agent}, for {waited_s:g} s now."
        print(sentence, file=sys.stderr, flush=True)


def _gauges(parts: Parts) -> Gauges:
    """What is asked of the parts at each scrape."""
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
    """Tell the person at the terminal what is served and what to try; the log is for machines."""
    settings, service = parts.settings, parts.service
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    names = ", ".join(f"{a.info.name} ({a.info.kind})" for a in service.agents.values())
    question = "Where is order 10023?" if service.demo else "…"
    works = service.role is Role.WORKER
    does = f"works background runs of {names}" if works else f"serves {names} on {url}"
    ask = [
        f"  curl -s {url}/agent -H 'content-type: application/json' \\",
        f'    -d \'{{"question": "{question}"}}\'',
    ]
    told = [
        f"Watchkeeper {service.version} {does}",
        *([f"Background runs are kept in {parts.durable.where}"] if parts.durable else []),
        *(["The demo model answers: no language model is configured."] if service.demo else []),
        *([f"A worker takes no questions; it tells of itself on {url}"] if works else []),
        "Try:",
        *([f"  curl -s {url}/health/ready"] if works else ask),
        f"  curl -s {url}/runs",
        f"  curl -s {url}/metrics",
    ]
    print("\n".join(told), file=sys.stderr, flush=True)
