"""Reads and writes single runs. Every call blocks, so it runs on a thread of the store."""

import time

from dbos import DBOSClient, EnqueueOptions
from dbos import error as engine_errors

from app.runs.errors import KeyReused, NoRoom, StoreUnavailable
from app.runs.tasks import Record, Task, TaskSpec, accepted
from app.tasks import payload, rows
from app.tasks.queries import Queries
from app.tasks.states import state_of
from app.tasks.store import Store
from app.tasks.tables import Tables

# Constant: otherwise a queued run would wait for a process of the version that queued it.
VERSION = "1"


class Records:
    """Submissions and their results."""

    def __init__(self, store: Store, tables: Tables, client: DBOSClient) -> None:
        self._store = store
        self._looks = Queries(tables, store.looks)
        self._queries = Queries(tables, store.calls)
        self._client = client

    def submit(self, spec: TaskSpec) -> tuple[Task, bool]:
        """Store a run. Returns whether it is new. Raises KeyReused for a key with another body."""
        # A repeat only reads: a crowd of repeats that write would wait for each other's locks.
        # A new run is not read back, which would double the time on a slow connection.
        if not spec.fingerprint or self._looks.row(spec.id) is None:
            stored = self._enqueue(spec)
            if stored is not None:
                return stored, True
        task = self.task(spec.id)
        if task is None:
            raise StoreUnavailable
        if task.fingerprint != spec.fingerprint:
            raise KeyReused
        return task, False

    def _enqueue(self, spec: TaskSpec) -> Task | None:
        """Store a run. Returns None if another submission of it came first."""
        if not self._store.has_room():
            raise NoRoom
        created_at = time.time()
        attributes = {
            rows.CREATED: created_at,
            rows.FINGERPRINT: spec.fingerprint,
            rows.RETRY_OF: spec.retry_of,
            rows.THREAD: spec.request.thread_id,
            rows.TRACE: spec.traceparent,
        }
        options: EnqueueOptions = {
            "workflow_name": spec.agent,
            "queue_name": spec.agent,
            "workflow_id": spec.id,
            "workflow_id_reuse_policy": "reject",
            "app_version": VERSION,
            "attributes": {name: value for name, value in attributes.items() if value is not None},
        }
        try:
            self._client.enqueue(options, payload.of(spec))
        except engine_errors.DBOSWorkflowIDInUseError:
            return None
        return accepted(spec, created_at)

    def task(self, task_id: str) -> Task | None:
        """Return a run, with its body if it has ended."""
        row = self._looks.row(task_id)
        if row is None or not state_of(row).has_result:
            return None if row is None else payload.task(row)
        found = self._client.list_workflows(workflow_ids=[task_id], load_input=False)
        return payload.task(row, found[0].output if found else None)

    def spec(self, task_id: str) -> TaskSpec | None:
        """Return what was submitted as that run."""
        found = self._client.list_workflows(workflow_ids=[task_id], load_output=False)
        stored = found[0].input if found else None
        if not stored:
            return None
        return TaskSpec(task_id, found[0].name, payload.request(stored["args"][0]))

    def record(self, task_id: str) -> Record | None:
        """Return all that is stored of a run."""
        task = self.task(task_id)
        spec = self.spec(task_id) if task is not None else None
        if task is None or spec is None:
            return None
        return Record(task, spec.request, self._queries.log(task_id, 0))
