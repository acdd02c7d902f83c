"""The engine behind the port: DBOS stores the queue, the owner, the log and the result of a run.

A run is one workflow without steps of the engine. The agent's own checkpoints decide what a crash
does not repeat. We call no asynchronous function of DBOS: those would replace
the default threads of the service's loop.
"""

import asyncio
import logging
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer

from app.runs.errors import Cancelled, StoreUnavailable
from app.runs.ports import Execute
from app.runs.ring import Entry
from app.runs.tasks import (
    EngineStats,
    Record,
    RunSnapshot,
    Task,
    TaskQuery,
    TaskSpec,
    TaskStatus,
    WaitCondition,
)
from app.tasks import rows
from app.tasks.cancellations import Cancellations
from app.tasks.heartbeat import Heartbeat
from app.tasks.hooks import Hooks
from app.tasks.housekeeping import Housekeeping
from app.tasks.journal import Journal
from app.tasks.liveness import Locks, locks_of
from app.tasks.pages import page
from app.tasks.polling import RunPoller
from app.tasks.queries import Queries
from app.tasks.records import VERSION, Records
from app.tasks.recovery import Recovery
from app.tasks.states import RunState, state_of
from app.tasks.store import Store, wait_for_lock
from app.tasks.supervisor import Supervisor
from app.tasks.tables import Tables
from app.tasks.transitions import Transitions
from app.tasks.worker import Worker

_NAME = "watchkeeper"
_POLL_S = 0.1
# DBOS polls each queue by itself. With many queues it polls each less often, up to this interval.
_LONGEST_POLL_S = 0.5
_SETTLE_S, _HAND_OVER_S = 2.0, 3.0
_CLOSE_S = 5.0
_OWN_LOCK_TIMEOUT_S = 5.0


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
        self._transitions = Transitions(store, self._tables)
        self._poller = RunPoller(store, self._tables)
        self._journal = Journal(store, self._tables, lambda error: self._hooks.failed(error))
        self._concurrency = concurrency
        self._global_concurrency = global_concurrency
        self._keep_s = keep_s
        self._hooks = Hooks()
        self._process = uuid.uuid4().hex
        # The lock that shows that this process is alive, and those of others while it tries them.
        self._locks: tuple[Locks, ...] = ()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dbos: DBOS | None = None
        self._worker: Worker | None = None
        self._records: Records | None = None
        self._cancellations: Cancellations | None = None
        self._housekeeping: Housekeeping | None = None
        self._supervisor: Supervisor | None = None

    @property
    def stats(self) -> EngineStats:
        """The last statistics read from the store."""
        return self._supervisor.stats if self._supervisor else EngineStats()

    @property
    def journal_age_s(self) -> float:
        """The age of the oldest entry that the journal has not written."""
        return self._journal.age_s()

    def subscribe(self, hooks: Hooks) -> None:
        """Set the hooks. `stop` is called on the loop, the others on threads of the engine."""
        self._hooks = replace(hooks, stop=self._on_loop(hooks.stop))

    async def start(self, execute: Execute, agents: Sequence[str], *, works: bool) -> None:
        """Open the store. If this process `works`, execute runs of these agents."""
        self._loop = asyncio.get_running_loop()
        self._worker = Worker(
            self._store,
            self._tables,
            execute,
            self._loop,
            self._journal,
            stopped=self._on_stopped,
            failed=lambda error: self._hooks.failed(error),
            cancelled=lambda task_id: self._hooks.ended_without_worker(task_id, Cancelled()),
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
        own, probe = self._locks = locks_of(self._store), locks_of(self._store)
        self._supervisor = self._jobs(client, worker, own, probe, works=works)
        # Before DBOS hands out a run: others take over the runs of a process without a lock. A
        # sweep of another process may hold this lock for a moment, or remove its file.
        probe.sweep()
        wait_for_lock(lambda: own.acquire(self._process), _OWN_LOCK_TIMEOUT_S)
        self._journal.start()
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

    def _jobs(
        self, client: DBOSClient, worker: Worker, own: Locks, probe: Locks, *, works: bool
    ) -> Supervisor:
        queries = Queries(self._tables, self._store.calls)
        about = (queries, self._transitions, self._process, self._hooks, probe)
        self._cancellations = Cancellations(*about)
        self._housekeeping = Housekeeping(
            queries, client, self._process, self._hooks, keep_s=self._keep_s
        )
        heartbeat = Heartbeat(self._store, queries, self._process, self._hooks, own, worker.claims)
        recovery = Recovery(*about, worker, works=works)
        others = (recovery, self._cancellations, self._housekeeping)
        return Supervisor(heartbeat, others, self._hooks.failed)

    def _on_stopped(self, task_id: str) -> None:
        if self._housekeeping is not None:
            self._housekeeping.add(task_id)

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
        """Wait until no run executes here."""
        if self._worker is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._worker.idle.wait(), timeout_s)

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
        self._journal.close(_CLOSE_S / 2)
        DBOS.destroy(destroy_registry=True)
        if self._supervisor is not None:
            self._supervisor.stop()
        for lock in self._locks:
            lock.close()
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
            row = self._transitions.cancel(task_id)
            if row is None:
                return None
            if state_of(row) is RunState.CANCELLED:
                self._hooks.ended_without_worker(task_id, Cancelled())
                return TaskStatus.PENDING
            if row["executor_id"] == self._process:
                self._hooks.stop(task_id, row["attributes"][rows.STARTED_TOKEN], True)
            elif self._cancellations is not None:
                self._cancellations.watch(task_id, row["executor_id"])
            return TaskStatus.RUNNING

        return await self._store.call(cancel)

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

    def _on_loop(self, call: Callable[[str, str, bool], None]) -> Callable[[str, str, bool], None]:
        def schedule(task_id: str, token: str, cancelled: bool) -> None:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(call, task_id, token, cancelled)

        return schedule
