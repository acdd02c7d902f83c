"""The engine behind the port: DBOS stores the queue, the owner, the log and the result of a run.

A run is one workflow with one step, and that step is the whole agent. The agent's own checkpoints
decide what a crash does not repeat. We call no asynchronous function of DBOS: those would replace
the default threads of the service's loop.
"""

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer

from app.runs.errors import Cancelled, StoreUnavailable
from app.runs.ring import Entry
from app.runs.tasks import (
    Body,
    EngineStats,
    Execute,
    Record,
    RunSnapshot,
    Task,
    TaskQuery,
    TaskSpec,
    TaskStatus,
    WaitCondition,
)
from app.tasks import rows
from app.tasks.pages import page
from app.tasks.polling import RunPoller
from app.tasks.records import VERSION, Records
from app.tasks.store import Store
from app.tasks.supervisor import Hooks, Supervisor
from app.tasks.tables import Tables
from app.tasks.worker import Worker

_NAME = "watchkeeper"
_POLL_S = 0.1
# DBOS polls each queue by itself. With many queues it polls each less often, up to this interval.
_LONGEST_POLL_S = 0.5
_SETTLE_S, _HAND_OVER_S = 2.0, 3.0
_CLOSE_S = 5.0


class Engine:
    """One for each process; DBOS allows no more."""

    def __init__(
        self,
        store: Store,
        *,
        concurrency: int,
        global_concurrency: int | None,
        keep_s: float,
    ) -> None:
        self._store = store
        self._tables = Tables(is_file=store.is_file)
        self._poller = RunPoller(store, self._tables)
        self._concurrency = concurrency
        self._global_concurrency = global_concurrency
        self._keep_s = keep_s
        self._hooks = Hooks()
        self._process = uuid.uuid4().hex
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dbos: DBOS | None = None
        self._worker: Worker | None = None
        self._records: Records | None = None
        self._supervisor: Supervisor | None = None

    @property
    def stats(self) -> EngineStats:
        """The last statistics read from the store."""
        return self._supervisor.stats if self._supervisor else EngineStats()

    def subscribe(self, hooks: Hooks) -> None:
        """Set the hooks. `stop` is called on the loop, the others on the supervisor's thread."""
        self._hooks = replace(hooks, stop=self._on_loop(hooks.stop))

    async def start(self, execute: Execute, agents: Sequence[str], *, works: bool) -> None:
        """Open the store. If this process `works`, execute runs of these agents."""
        self._loop = asyncio.get_running_loop()
        self._worker = Worker(
            self._store,
            self._tables,
            execute,
            self._loop,
            failed=lambda error: self._hooks.failed(error),
            cancelled_before_start=lambda task_id: self._hooks.ended_without_worker(
                task_id, Cancelled()
            ),
        )
        opened = self._store.in_thread(self._open, self._worker, tuple(agents), works)
        await asyncio.wrap_future(opened)

    def _open(self, worker: Worker, agents: Sequence[str], works: bool) -> None:
        # DBOS logs the text of exceptions, which may quote callers and tools.
        logging.getLogger("dbos").setLevel(logging.CRITICAL)
        client = DBOSClient(
            system_database_engine=self._store.calls,
            serializer=DBOSPortableJSONSerializer(),
            application_name=_NAME,
            retry_connection_errors=False,
        )
        self._records = Records(self._store, self._tables, client)
        self._supervisor = Supervisor(
            self._store,
            client,
            self._tables,
            self._process,
            self._hooks,
            worker,
            keep_s=self._keep_s,
            works=works,
        )
        # Before DBOS hands out a run: others take over the runs of a process without a lock.
        self._supervisor.acquire_own_lock()
        self._dbos = DBOS(
            config={
                "name": _NAME,
                "system_database_url": self._store.url.render_as_string(hide_password=False),
                "system_database_engine": self._store.worker,
                "executor_id": self._process,
                "application_version": VERSION,
                "serializer": DBOSPortableJSONSerializer(),
                "use_listen_notify": False,
                "log_level": "CRITICAL",
            }
        )
        for agent in agents:
            DBOS.workflow(name=agent, max_recovery_attempts=None)(worker.workflow())
        DBOS.listen_queues(agents if works else [])
        DBOS.launch()
        everywhere = self._global_concurrency
        for agent in agents if works else ():
            DBOS.register_queue(
                agent,
                worker_concurrency=min(self._concurrency, everywhere or self._concurrency),
                global_concurrency=self._global_concurrency,
                polling_interval_sec=min(_POLL_S * len(agents), _LONGEST_POLL_S),
                on_conflict="always_update",
            )
        self._supervisor.start()

    def stop_taking_runs(self) -> None:
        """Take no more runs. Those that execute here go on."""
        if self._worker is not None:
            self._worker.is_stopping = True
        if self._dbos is not None:
            for event in self._dbos.background_thread_stop_events:
                event.set()

    async def release_waiters(self) -> None:
        """Wake every caller that waits for a run, once the ends of local runs are stored."""
        await self._wait_until_idle(_SETTLE_S)
        await self._poller.release_waiters()

    async def _wait_until_idle(self, timeout_s: float) -> None:
        """Wait until no run executes here and DBOS has stored every result."""
        deadline = time.monotonic() + timeout_s
        with suppress(StoreUnavailable, sa.exc.SQLAlchemyError):  # the store may not be open
            while self._worker and time.monotonic() < deadline:
                owned = await self._store.call(
                    self._tables.of_process, self._store.calls, self._process
                )
                if not (owned or self._worker.executing):
                    return
                await asyncio.sleep(_POLL_S / 2)

    async def stop(self) -> None:
        """Hand over the runs that still execute here, and close."""
        self.stop_taking_runs()
        await self._wait_until_idle(_HAND_OVER_S)
        if self._dbos is not None:
            # A daemon thread: DBOS waits for an unavailable store, and this process must not.
            closed = asyncio.Event()
            loop = asyncio.get_running_loop()
            closing = threading.Thread(target=self._close, args=(loop, closed), daemon=True)
            closing.start()
            with suppress(TimeoutError):
                await asyncio.wait_for(closed.wait(), _CLOSE_S)
        self._store.close()

    def _close(self, loop: asyncio.AbstractEventLoop, closed: asyncio.Event) -> None:
        DBOS.destroy(destroy_registry=True)
        if self._supervisor is not None:
            self._supervisor.stop()
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(closed.set)

    async def submit(self, spec: TaskSpec) -> tuple[Task, bool]:
        """Store a run. Returns whether it is new. Raises KeyReused for a key with another body."""
        return await self._store.call(self._opened_records().submit, spec)

    async def get(self, task_id: str) -> Task | None:
        """Return a run, with its body if it has ended."""
        return await self._store.call(self._opened_records().task, task_id)

    async def spec_of(self, task_id: str) -> TaskSpec | None:
        """Return what was submitted as that run."""
        return await self._store.call(self._opened_records().spec, task_id)

    async def record(self, task_id: str) -> Record | None:
        """Return all that is stored of a run."""
        return await self._store.call(self._opened_records().record, task_id)

    async def list(self, query: TaskQuery) -> tuple[Sequence[Task], str | None]:
        """Return a page of runs, newest first. Raises ValueError for an invalid cursor."""
        return await self._store.call(page, self._tables, self._store.calls, query)

    async def cancel(self, task_id: str) -> TaskStatus | None:
        """Cancel a run. Returns the status it had, None if it had already ended."""

        def cancel() -> TaskStatus | None:
            with self._store.change() as connection:
                cancelling = self._tables.cancelling(task_id, time.time())
                found = connection.execute(cancelling).one_or_none()
            if found is None:
                return None
            if rows.STUCK in found.attributes:
                self._hooks.ended_without_worker(task_id, Cancelled())
                return TaskStatus.PENDING
            if found.executor_id == self._process:
                self._hooks.stop(task_id, True)
            if self._supervisor is not None:
                self._supervisor.watch_cancellation(task_id, found.executor_id)
            return TaskStatus.RUNNING

        return await self._store.call(cancel)

    async def record_stopped(self, task_id: str, body: Body, *, stuck: bool) -> None:
        """Store how a cancelled run ended that this process executed."""
        await self._store.call(self._opened_records().record_stopped, task_id, body, stuck)

    async def wait(
        self, task_id: str, condition: WaitCondition, timeout_s: float
    ) -> RunSnapshot | None:
        """Return the snapshot that meets the condition, or None after the timeout."""
        return await self._poller.wait(task_id, condition, timeout_s)

    def follow(self, task_id: str, event: int) -> AsyncIterator[Sequence[Entry]]:
        """Yield the events of a run's log as they come, from that event or a little before."""
        return self._poller.follow(task_id, event)

    def _opened_records(self) -> Records:
        if self._records is None:  # the store has not been opened yet
            raise StoreUnavailable
        return self._records

    def _on_loop(self, call: Callable[[str, bool], None]) -> Callable[[str, bool], None]:
        def schedule(task_id: str, cancelled: bool) -> None:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(call, task_id, cancelled)

        return schedule
