"""Joins the parts that need the store: its engine, its stores, the steps of graphs.

It is a part of `main`, the composition root.
"""

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
from app.api.results import render
from app.runs.background import Background
from app.runs.errors import RunError, StoreUnavailable, WorkerLost
from app.runs.events import RunLost, RunRecovered
from app.runs.ports import StatefulAgent
from app.runs.retries import retry_until_available
from app.runs.runner import Runner
from app.runs.tasks import Record
from app.settings import Settings, SettingsError
from app.tasks import migrations, transitions
from app.tasks.conversations import ConversationStore
from app.tasks.engine import Engine
from app.tasks.hooks import Hooks
from app.tasks.idempotency import IdempotencyKeyStore
from app.tasks.migrations import MigrationFailed
from app.tasks.store import Store
from app.telemetry import catalogue, lines
from app.telemetry.logs import Log
from app.telemetry.pipeline import Gauges

_CHECK_REACHABLE_S = 0.5
_REPORT_ATTEMPTS = 20


class CannotOpenStore(Exception):
    """The store cannot be opened. The message names the reason and the setting to change."""


@dataclass(slots=True)
class Durable:
    """The store and everything that uses it. The setting `variable` names the store.

    Other parts may hold `engine` before it is opened.
    """

    store: Store
    url: str
    variable: str
    engine: Engine
    threads: ConversationStore
    keys: IdempotencyKeyStore
    runner: Runner
    log: Log
    keep_s: float
    served: Collection[str] = ()

    @classmethod
    def of(cls, settings: Settings, runner: Runner, log: Log) -> "Durable":
        """Build the parts without opening them. Raises SettingsError for an invalid URL."""
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
        threads, keys = ConversationStore(store), IdempotencyKeyStore(store)
        return cls(store, url, variable, engine, threads, keys, runner, log, settings.keep_tasks_s)

    @property
    def where(self) -> str:
        """The location of the store for people: a path, or a URL without its password."""
        return str(self.store.path or configuration.masked(self.url))

    @property
    def _driver_url(self) -> str:
        """The URL in the form that every driver reads in the same way."""
        if self.store.is_file:
            return self.url
        server = self.store.url.set(drivername="postgresql")
        return server.render_as_string(hide_password=False)

    @asynccontextmanager
    async def opened(self, service: Service) -> AsyncIterator[None]:
        """Open the store and its parts, attach the agents, and take runs if this process works.

        Raises CannotOpenStore.
        """
        self.served = tuple(service.agents)
        async with AsyncExitStack() as parts:
            try:
                await self._open(service, parts)
            except Exception as refused:  # the engine, the drivers and LangGraph share no base
                reason = self.store.why(refused)
                if isinstance(refused, MigrationFailed):
                    reason = f"{refused}: {reason}"
                raise CannotOpenStore(
                    f"The store {self.where} cannot be opened: {reason}; see that "
                    f"it is there and may be written, or set {self.variable} to another."
                ) from refused
            yield

    async def _open(self, service: Service, parts: AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.wrap_future(self.store.in_thread(self.store.prepare))
        async with self._alone():
            await asyncio.wrap_future(self.store.in_thread(migrations.migrate, self.store))
            steps = await parts.enter_async_context(
                checkpoints.opened(self._driver_url, transitions.HELD)
            )
            for agent in service.agents.values():
                if isinstance(agent, StatefulAgent):
                    agent.use_store(self.threads, steps.saver)
            background = Background(self.runner, lambda: service.agents, render)

            def ended_without_worker(task_id: str, error: RunError) -> None:
                reporting = self._report_ended_without_worker(service, task_id, error)
                reported = asyncio.run_coroutine_threadsafe(reporting, loop)
                reported.add_done_callback(self._log_failure)

            hooks = Hooks(
                stop=background.stop,
                recovered=self._emit_recovered,
                ended_without_worker=ended_without_worker,
                delete_steps=_on_loop(loop, steps),
                purge=self._purge,
                failed=lambda error: self.log.failed(lines.UNHANDLED, error),
            )
            self.engine.subscribe(hooks)
            works = service.role is not Role.API
            parts.push_async_callback(self.engine.stop)
            await self.engine.start(background.execute, list(service.agents), works=works)
            logging = asyncio.create_task(self._log_store_changes(), name="reach of the store")
            parts.callback(logging.cancel)

    def _purge(self) -> None:
        self.threads.purge(self.keep_s)
        self.keys.purge()

    async def _log_store_changes(self) -> None:
        """Log once when the store becomes unreachable, and once when it is back."""
        reachable = True
        while True:
            await asyncio.sleep(_CHECK_REACHABLE_S)
            if self.engine.stats.reachable != reachable:
                reachable = not reachable
                if reachable:
                    self.log.log("info", lines.STORE_BACK)
                else:
                    self.log.log("warning", lines.STORE_UNREACHABLE)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Keep other processes from opening the store.

        The engine and LangGraph create their tables when they are opened. Two processes that do so
        at once collide.
        """
        lock = self.store.alone()
        await asyncio.wrap_future(self.store.in_thread(lock.__enter__))
        try:
            yield
        finally:
            await asyncio.wrap_future(self.store.in_thread(lock.__exit__, None, None, None))

    def _emit_recovered(self, task_id: str, agent: str) -> None:
        """Emit the fact for agents served here: no label has the names of others."""
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
        """Return what is stored of a run; None if it is not, or if the store stays unavailable."""
        try:
            return await retry_until_available(
                lambda: self.engine.record(task_id), attempts=_REPORT_ATTEMPTS
            )
        except StoreUnavailable:
            return None

    def _log_failure(self, reported: "Future[None]") -> None:
        if not reported.cancelled() and (wrong := reported.exception()) is not None:
            self.log.failed(lines.UNHANDLED, wrong)

    def gauges(self, service: Service) -> Gauges:
        """Return the gauges of the store. Each scrape reads the engine's last statistics."""

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
            catalogue.JOURNAL_AGE: lambda: {(): self.engine.journal_age_s},
            catalogue.STORE_FREE: free,
            catalogue.STORE_RESERVE: lambda: {(): float(self.engine.stats.reserve_bytes)},
        }


def _on_loop(
    loop: asyncio.AbstractEventLoop, steps: Checkpoints
) -> Callable[[Sequence[str]], "Future[None]"]:
    """Return a function that deletes steps from another thread."""
    return lambda ids: asyncio.run_coroutine_threadsafe(steps.delete_steps(ids), loop)
