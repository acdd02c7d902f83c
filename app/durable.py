"""Joins what survives the process: the store, its engine, the steps of graphs. Part of `main`."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from app import settings as configuration
from app.agents import checkpoints
from app.agents.checkpoints import Checkpoints
from app.api.deps import Role, Service
from app.api.sse import final
from app.runs.background import Background
from app.runs.errors import RunError, StoreUnavailable, WorkerLost
from app.runs.events import RunLost, RunRecovered
from app.runs.runner import Runner
from app.runs.tasks import Record
from app.settings import Settings, SettingsError
from app.tasks import kept, ownership
from app.tasks.engine import Engine
from app.tasks.kept import Keys, Threads
from app.tasks.store import Store
from app.tasks.supervisor import Hooks
from app.telemetry import catalogue, lines, logs
from app.telemetry.pipeline import Gauges

# How often it is looked whether the store went away or came back.
_LOOK_S = 0.5
_REPORT_ATTEMPTS = 20


class CannotOpenStore(Exception):
    """The store is away, or is not what it should be; the message says what to turn."""


@dataclass(slots=True)
class Durable:
    """What stands on the store, whose place `variable` decides.

    `engine` may be given to others before it is opened.
    """

    store: Store
    url: str
    variable: str
    engine: Engine
    threads: Threads
    keys: Keys
    runner: Runner
    served: Collection[str] = ()

    @classmethod
    def of(cls, settings: Settings, runner: Runner) -> "Durable":
        """The parts, not opened. Raises SettingsError for a URL that names no store."""
        url = settings.store or ""
        variable = configuration.variable("store_url" if settings.store_url else "data_dir")
        try:
            store = Store(url, settings.store_reserve_bytes)
        except ValueError as wrong:
            raise SettingsError(f"{variable} names no store: {wrong}.") from wrong
        engine = Engine(
            store,
            concurrency=settings.max_background_runs,
            global_concurrency=settings.max_background_runs_everywhere,
            keep_s=settings.keep_tasks_s,
        )
        return cls(store, url, variable, engine, Threads(store), Keys(store), runner)

    @property
    def where(self) -> str:
        """The place of the store, for people: a path, or a URL without a password."""
        return str(self.store.path or configuration.masked(self.url))

    @property
    def _driver_url(self) -> str:
        """The URL in the one spelling that all drivers read in the same way."""
        if self.store.is_file:
            return self.url
        server = self.store.url.set(drivername="postgresql")
        return server.render_as_string(hide_password=False)

    @asynccontextmanager
    async def opened(self, service: Service) -> AsyncIterator[None]:
        """Open the store, give agents their place on it, and take runs if this process works.

        Raises CannotOpenStore.
        """
        self.served = tuple(service.agents)
        async with AsyncExitStack() as parts:
            try:
                await self._open(service, parts)
            except Exception as refused:  # of the engine, of either driver, of graphs' steps
                raise CannotOpenStore(
                    f"The store {self.where} cannot be opened: {self.store.why(refused)}; see that "
                    f"it is there and may be written, or set {self.variable} to another."
                ) from refused
            yield

    async def _open(self, service: Service, parts: AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.wrap_future(self.store.in_thread(self.store.prepare))
        async with self._alone():
            await asyncio.wrap_future(self.store.in_thread(kept.create, self.store))
            steps = await parts.enter_async_context(
                checkpoints.opened(self._driver_url, ownership.HELD)
            )
            for agent in service.agents.values():
                use_stores: Callable[..., None] | None = getattr(agent, "use_stores", None)
                if use_stores is not None:
                    use_stores(self.threads, steps.saver)
            background = Background(
                self.runner, lambda: service.agents, final, self.engine.record_stopped
            )

            def ended_without_worker(task_id: str, error: RunError) -> None:
                telling = self._report_ended_without_worker(service, task_id, error)
                told = asyncio.run_coroutine_threadsafe(telling, loop)
                told.add_done_callback(_log_failure)

            hooks = Hooks(
                stop=background.stop,
                recovered=self._emit_recovered,
                ended_without_worker=ended_without_worker,
                delete_steps=_on_loop(loop, steps),
                purge=lambda before: kept.purge(self.store, before),
                failed=lambda error: logs.failed(lines.UNHANDLED, error),
            )
            self.engine.subscribe(hooks)
            works = service.role is not Role.API
            parts.push_async_callback(self.engine.stop)
            await self.engine.start(background.execute, list(service.agents), works=works)
            telling = asyncio.create_task(self._log_store_changes(), name="reach of the store")
            parts.callback(telling.cancel)

    async def _log_store_changes(self) -> None:
        """Say when it goes away and when it is back, and not with each request meanwhile."""
        reachable = True
        while True:
            await asyncio.sleep(_LOOK_S)
            if self.engine.stats.reachable != reachable:
                reachable = not reachable
                if reachable:
                    logs.log("info", lines.STORE_BACK)
                else:
                    logs.log("warning", lines.STORE_UNREACHABLE)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Keep other processes from opening the store meanwhile.

        The engine and the steps make their tables when they are opened, and two that do so at
        once collide.
        """
        lock = self.store.alone()
        await asyncio.wrap_future(self.store.in_thread(lock.__enter__))
        try:
            yield
        finally:
            await asyncio.wrap_future(self.store.in_thread(lock.__exit__, None, None, None))

    def _emit_recovered(self, task_id: str, agent: str) -> None:
        """Of agents served here: others have no place among the labels."""
        if agent in self.served:
            self.runner.emit(RunRecovered(run_id=task_id, agent=agent, at=time.monotonic()))

    async def _report_ended_without_worker(
        self, service: Service, task_id: str, error: RunError
    ) -> None:
        record = await self._record(task_id)
        agent = service.agents.get(record.task.agent) if record is not None else None
        if record is None or agent is None:
            return
        if isinstance(error, WorkerLost):
            at = time.monotonic()
            self.runner.emit(RunLost(run_id=task_id, agent=agent.info.name, at=at))
        self.runner.report_ended_without_worker(agent.info, record, error)

    async def _record(self, task_id: str) -> Record | None:
        """What is stored of a run; of a store that stays away for long, nothing."""
        for _ in range(_REPORT_ATTEMPTS):
            try:
                return await self.engine.record(task_id)
            except StoreUnavailable:
                await asyncio.sleep(_LOOK_S)
        return None

    def gauges(self, service: Service) -> Gauges:
        """What is told of the store at each scrape, as it was last read."""

        def by_agent(value: Callable[[Any], float]) -> Callable[[], dict[tuple[str, ...], float]]:
            return lambda: {(name,): value(self.engine.stats.of(name)) for name in service.agents}

        def ages() -> dict[tuple[str, ...], float]:
            loads = {name: self.engine.stats.of(name) for name in service.agents}
            return {
                (name, state): age
                for name, load in loads.items()
                for state, age in (
                    ("queued", load.oldest_queued_s),
                    ("running", load.oldest_running_s),
                )
            }

        def unservable() -> dict[tuple[str, ...], float]:
            loads = self.engine.stats.agents.items()
            return {(): float(sum(v.queued for name, v in loads if name not in service.agents))}

        def free() -> dict[tuple[str, ...], float]:
            room = self.engine.stats.free_bytes
            return {} if room is None else {(): float(room)}

        return {
            catalogue.TASKS_QUEUED: by_agent(lambda load: load.queued),
            catalogue.TASKS_RUNNING: by_agent(lambda load: load.running),
            catalogue.TASK_OLDEST_AGE: ages,
            catalogue.TASKS_UNSERVABLE: unservable,
            catalogue.STORE_FREE: free,
            catalogue.STORE_RESERVE: lambda: {(): float(self.engine.stats.reserve_bytes)},
        }


def _log_failure(told: "Future[None]") -> None:
    if not told.cancelled() and (wrong := told.exception()) is not None:
        logs.failed(lines.UNHANDLED, wrong)


def _on_loop(
    loop: asyncio.AbstractEventLoop, steps: Checkpoints
) -> Callable[[Sequence[str]], "Future[None]"]:
    """Forget steps, from another thread."""
    return lambda ids: asyncio.run_coroutine_threadsafe(steps.delete_steps(ids), loop)
