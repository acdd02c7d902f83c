"""The engine behind the port: DBOS keeps the queue, the owner, the log and the result of a run.

A run is one workflow with one step, whose body is the whole agent; what of it is not done again
after a crash is decided by the agent's own checkpoints. Workflows are synchronous and wait on
threads of the engine's own for the run, which works on the service's loop: the engine's
asynchronous calls would put its threads in the place of the service's.
"""

import asyncio
import contextvars
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer, EnqueueOptions
from dbos import error as engine_errors

from app.runs.errors import HandedOver, KeyReused, StoreUnavailable
from app.runs.tasks import (
    Attempt,
    Body,
    EngineStats,
    Execute,
    Result,
    Task,
    TaskQuery,
    TaskSpec,
)
from app.tasks import payload, rows
from app.tasks.rows import Tables
from app.tasks.store import Store
from app.tasks.supervisor import Heard, Supervisor

# Constant, or what is queued would wait for a process of the version that queued it.
_VERSION = "1"
_NAME = "watchkeeper"
_LOOK_S = 0.1


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
        self._concurrency = concurrency
        self._global_concurrency = global_concurrency
        self._keep_s = keep_s
        self._heard = Heard()
        self._me = uuid.uuid4().hex
        self._working: set[str] = set()
        self._left: set[str] = set()
        self._leaving = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._execute: Execute | None = None
        self._dbos: DBOS | None = None
        self._client: DBOSClient | None = None
        self._supervisor: Supervisor | None = None

    @property
    def stats(self) -> EngineStats:
        """What was last read of the store."""
        return self._supervisor.stats if self._supervisor else EngineStats()

    def hear(
        self,
        *,
        stop: Callable[[str, bool], None],
        recovered: Callable[[str, str], None],
        lost: Callable[[str, str], None],
        forget: Callable[[Iterable[str]], None],
        purge: Callable[[float], None],
    ) -> None:
        """Whom to tell what the store says; `stop` is called on the loop, the others are not."""
        self._heard = Heard(self._on_loop(stop), recovered, lost, forget, purge)

    async def start(self, execute: Execute, agents: Sequence[str], *, works: bool) -> None:
        """Open the store and, if this process `works`, take runs of these agents from it."""
        self._loop = asyncio.get_running_loop()
        self._execute = execute
        await asyncio.wrap_future(self._store.in_thread(self._open, tuple(agents), works))

    def _open(self, agents: Sequence[str], works: bool) -> None:
        self._store.prepare()
        self._dbos = DBOS(
            config={
                "name": _NAME,
                "system_database_url": self._store.url.render_as_string(hide_password=False),
                "system_database_engine": self._store.worker,
                "executor_id": self._me,
                "application_version": _VERSION,
                "serializer": DBOSPortableJSONSerializer(),
                "use_listen_notify": False,
                "log_level": "CRITICAL",
            }
        )
        for agent in agents:
            DBOS.workflow(name=agent, max_recovery_attempts=None)(self._workflow())
        DBOS.listen_queues(agents if works else [])
        DBOS.launch()
        self._client = DBOSClient(
            system_database_engine=self._store.calls,
            serializer=DBOSPortableJSONSerializer(),
            application_name=_NAME,
            retry_connection_errors=False,
        )
        for agent in agents:
            DBOS.register_queue(
                agent,
                worker_concurrency=self._concurrency,
                global_concurrency=self._global_concurrency,
                polling_interval_sec=_LOOK_S * len(agents),
                on_conflict="always_update",
            )
        self._supervisor = Supervisor(
            self._store,
            self._client,
            self._tables,
            self._me,
            self._heard,
            self._working,
            self._left,
            keep_s=self._keep_s,
            works=works,
        )
        self._supervisor.start()

    def leave(self) -> None:
        """Take no more runs; those at work here may still end."""
        self._leaving = True
        if self._dbos is not None:
            for event in self._dbos.background_thread_stop_events:
                event.set()

    async def stop(self) -> None:
        """Close; runs that are still worked here were given back by then."""
        self.leave()
        if self._dbos is not None:
            await asyncio.wrap_future(self._store.in_thread(self._close))
        self._store.close()

    def _close(self) -> None:
        DBOS.destroy(destroy_registry=True)
        if self._supervisor is not None:
            self._supervisor.stop()

    async def submit(self, spec: TaskSpec) -> tuple[Task, bool]:
        """Store a run; true if it is new. Raises KeyReused for a key with another body."""
        return await self._store.call(self._submit, spec)

    def _submit(self, spec: TaskSpec) -> tuple[Task, bool]:
        if not self._store.has_room():
            raise StoreUnavailable
        noted = {
            rows.CREATED: time.time(),
            rows.FINGERPRINT: spec.fingerprint,
            rows.RETRY_OF: spec.retry_of,
            rows.THREAD: spec.request.thread_id,
        }
        options: EnqueueOptions = {
            "workflow_name": spec.agent,
            "queue_name": spec.agent,
            "workflow_id": spec.id,
            "workflow_id_reuse_policy": "reject",
            "app_version": _VERSION,
            "attributes": {name: value for name, value in noted.items() if value is not None},
        }
        try:
            self._known_client().enqueue(options, payload.of(spec))
            created = True
        except engine_errors.DBOSWorkflowIDInUseError:
            created = False
        row = self._tables.row(self._store.calls, spec.id)
        if row is None:
            raise StoreUnavailable
        task = rows.task(row)
        if not created and task.fingerprint != spec.fingerprint:
            raise KeyReused
        return task, created

    async def get(self, task_id: str) -> Task | None:
        """One run, with its body if it has ended."""
        return await self._store.call(self._get, task_id)

    def _get(self, task_id: str) -> Task | None:
        row = self._tables.row(self._store.calls, task_id)
        if row is None or row["status"] != "SUCCESS":
            return None if row is None else rows.task(row)
        found = self._known_client().list_workflows(workflow_ids=[task_id], load_input=False)
        output = found[0].output if found else None
        return rows.task(row, output["body"] if output else None)

    async def spec_of(self, task_id: str) -> TaskSpec | None:
        """What was submitted as that run."""

        def read() -> TaskSpec | None:
            found = self._known_client().list_workflows(workflow_ids=[task_id], load_output=False)
            stored = found[0].input if found else None
            if not stored:
                return None
            return TaskSpec(task_id, found[0].name, payload.request(stored["args"][0]))

        return await self._store.call(read)

    async def list(self, query: TaskQuery) -> tuple[Sequence[Task], str | None]:
        """A page of runs, newest first. Raises ValueError for a cursor that is none."""
        return await self._store.call(self._tables.page, self._store.calls, query)

    async def cancel(self, task_id: str) -> bool:
        """Order a run to stop; false if it had ended before."""

        def order() -> bool:
            row = self._tables.row(self._store.calls, task_id)
            if row is None or rows.task(row).status.ended:
                return False
            self._known_client().cancel_workflow(task_id)
            states = self._tables.states(self._store.calls, [task_id])
            return states[task_id][0] == "CANCELLED"

        return await self._store.call(order)

    async def tell_stopped(self, task_id: str, body: Body) -> None:
        """Say what became of a cancelled run that this process worked."""
        noted = {rows.STOPPED: dict(body), rows.FINISHED: time.time()}
        client = self._known_client()
        await self._store.call(client.update_workflow_attributes, task_id, noted, merge=True)

    async def follow(
        self, task_id: str, after: int = 0
    ) -> AsyncIterator[Sequence[Mapping[str, Any]]]:
        """The rows of a run's log as they come, whichever process writes them; empty in between.

        Ends when the run has ended and all of its rows were given.
        """
        while True:
            ended = await self._store.call(self._has_ended, task_id)  # asked first: see the ring
            found = await self._store.call(self._tables.log, self._store.calls, task_id, after)
            after += len(found)
            if found or not ended:
                yield found
            if ended and not found:
                return
            await asyncio.sleep(_LOOK_S)

    def _has_ended(self, task_id: str) -> bool:
        states = self._tables.states(self._store.calls, [task_id])
        return states.get(task_id, ("CANCELLED", None))[0] not in ("ENQUEUED", "DELAYED", "PENDING")

    def _known_client(self) -> DBOSClient:
        if self._client is None:
            raise StoreUnavailable
        return self._client

    def _workflow(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """What the engine calls, on a thread of its own, for each attempt."""

        def work(stored: dict[str, Any]) -> dict[str, Any]:
            return DBOS.run_step({"name": "agent"}, self._attempt, stored)

        return work

    def _attempt(self, stored: dict[str, Any]) -> dict[str, Any]:
        task_id = DBOS.workflow_id
        assert task_id is not None
        assert self._loop is not None
        assert self._execute is not None
        if self._leaving:
            self._give_back(task_id)
        attempt = self._begin(task_id, stored)
        self._working.add(task_id)
        try:
            work = self._execute(attempt)
            result: Result = asyncio.run_coroutine_threadsafe(work, self._loop).result()  # type: ignore[arg-type]
            noted = {rows.OUTCOME: result.outcome.value, rows.FINISHED: time.time()}
            DBOS.update_workflow_attributes(task_id, noted, merge=True)
            return {"outcome": result.outcome.value, "body": dict(result.body)}
        except HandedOver:
            self._give_back(task_id)
            raise
        finally:
            self._working.discard(task_id)
            self._left.add(task_id)

    def _begin(self, task_id: str, stored: Mapping[str, Any]) -> Attempt:
        engine = self._store.worker
        row = self._tables.row(engine, task_id)
        assert row is not None
        known = rows.task(row)
        started_at = known.started_at or time.time()
        if known.started_at is None:
            DBOS.update_workflow_attributes(task_id, {rows.STARTED: started_at}, merge=True)
        context = contextvars.copy_context()

        async def write(entry: Mapping[str, Any]) -> None:
            # A context can be entered once at a time: each write has its own copy.
            written = self._store.in_thread(
                context.copy().run, DBOS.write_stream, rows.LOG, dict(entry)
            )
            try:
                await asyncio.wrap_future(written)
            except engine_errors.DBOSWorkflowConflictIDError as another:
                raise HandedOver from another
            except sa.exc.SQLAlchemyError as refused:
                raise StoreUnavailable from refused

        return Attempt(
            task_id=task_id,
            agent=known.agent,
            request=payload.request(stored),
            number=max(1, known.attempts + (known.started_at is None)),
            created_at=known.created_at,
            started_at=started_at,
            log=self._tables.log(engine, task_id, 0),
            write=write,
            traceparent=stored.get("traceparent"),
        )

    def _give_back(self, task_id: str) -> None:
        """Put a run that this process leaves unfinished back into its queue, and leave it.

        Raises what the engine takes as: this is not mine to end.
        """
        row = self._tables.row(self._store.worker, task_id)
        if row is not None and row["status"] == "PENDING" and row["executor_id"] == self._me:
            noted = (row["attributes"] or {}).get(rows.GIVEN_BACK, 0) + 1
            DBOS.update_workflow_attributes(task_id, {rows.GIVEN_BACK: noted}, merge=True)
            DBOS.resume_workflow(task_id, queue_name=row["name"])
        raise engine_errors.DBOSWorkflowCancelledError("handed over")

    def _on_loop(self, call: Callable[[str, bool], None]) -> Callable[[str, bool], None]:
        def tell(task_id: str, cancelled: bool) -> None:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(call, task_id, cancelled)

        return tell
