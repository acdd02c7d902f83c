"""Works runs that the engine hands out, each on a thread that waits for the service's loop."""

import asyncio
import contextvars
import time
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from dbos import DBOS
from dbos import error as engine_errors

from app.runs.errors import HandedOver, StoreUnavailable
from app.runs.tasks import Attempt, Execute, Result
from app.tasks import payload, rows
from app.tasks.rows import Tables
from app.tasks.store import Store


class NotOurs(BaseException):
    """Ends a workflow's thread without an outcome: the run is not this process's to end.

    It is no Exception, which the engine would record as the end of the run, and none of the
    engine's own, after which it would keep the thread until somebody else has ended the run.
    """


class Worker:
    """What the engine calls. `working` are the runs it has, `left` those it had until lately."""

    def __init__(
        self,
        store: Store,
        tables: Tables,
        me: str,
        execute: Execute,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.working: set[str] = set()
        self.left: set[str] = set()
        self.leaving = False
        self._store = store
        self._tables = tables
        self._me = me
        self._execute = execute
        self._loop = loop

    def workflow(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """A workflow of one step: a result that was recorded is not worked for again."""

        def work(stored: dict[str, Any]) -> dict[str, Any]:
            return DBOS.run_step({"name": "agent"}, self._attempt, stored)

        return work

    def _attempt(self, stored: dict[str, Any]) -> dict[str, Any]:
        task_id = DBOS.workflow_id
        assert task_id is not None
        if self.leaving:
            self._give_back(task_id, begun=False)
            raise NotOurs
        self.working.add(task_id)
        try:
            result = self._wait_for(self._begin(task_id, stored))
            noted = {rows.OUTCOME: result.outcome.value, rows.FINISHED: time.time()}
            DBOS.update_workflow_attributes(task_id, noted, merge=True)
            return {"outcome": result.outcome.value, "body": dict(result.body)}
        except HandedOver as another:
            self._give_back(task_id, begun=True)
            raise NotOurs from another
        finally:
            self.left.add(task_id)
            self.working.discard(task_id)

    def _wait_for(self, attempt: Attempt) -> Result:
        """The run has a deadline, so this wait has one."""
        work: Any = self._execute(attempt)
        result: Result = asyncio.run_coroutine_threadsafe(work, self._loop).result()
        return result

    def _begin(self, task_id: str, stored: Mapping[str, Any]) -> Attempt:
        row = self._tables.row(self._store.worker, task_id)
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
            log=self._tables.log(self._store.worker, task_id, 0) if known.started_at else (),
            write=write,
            traceparent=stored.get("traceparent"),
        )

    def _give_back(self, task_id: str, *, begun: bool) -> None:
        """Put a run that this process leaves unfinished back into its queue, if it still has it."""
        row = self._tables.row(self._store.worker, task_id)
        if row is not None and row["status"] == "PENDING" and row["executor_id"] == self._me:
            if begun:
                noted = (row["attributes"] or {}).get(rows.GIVEN_BACK, 0) + 1
                DBOS.update_workflow_attributes(task_id, {rows.GIVEN_BACK: noted}, merge=True)
            DBOS.resume_workflow(task_id, queue_name=row["name"])
