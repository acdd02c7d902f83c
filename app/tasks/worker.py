"""Works runs that the engine hands out, each on a thread that waits for the service's loop."""

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import sqlalchemy as sa
from dbos import DBOS

from app.runs.errors import Cancelled, HandedOver, NotStorable, StoreUnavailable
from app.runs.model import Outcome
from app.runs.tasks import Attempt, Execute, Result, Task
from app.tasks import payload, rows
from app.tasks.ownership import Owned
from app.tasks.store import BAD_CONTENT, Store, refuses_content
from app.tasks.tables import Tables


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
        execute: Execute,
        loop: asyncio.AbstractEventLoop,
        failed: Callable[[BaseException], None],
        cancelled_before_start: Callable[[str], None],
    ) -> None:
        self.working: set[str] = set()
        self.left: set[str] = set()
        self.leaving = False
        self._store = store
        self._tables = tables
        self._execute = execute
        self._loop = loop
        self._failed = failed
        self._cancelled_before_start = cancelled_before_start
        # By run, what to store in the place of a result that the store refuses.
        self._instead: dict[str, Callable[[], dict[str, Any]]] = {}

    def workflow(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """A workflow of one step: a result that was recorded is not worked for again."""

        def work(stored: dict[str, Any]) -> dict[str, Any]:
            try:
                return DBOS.run_step({"name": "agent"}, self._attempt, stored)
            except Exception as wrong:
                # The result could not be recorded. The engine would record that as the end.
                self._failed(wrong)
                instead = self._instead.get(DBOS.workflow_id or "")
                if instead is None or not refuses_content(wrong):
                    raise NotOurs from wrong
                return instead()  # to work the run again would lead here again
            finally:
                self._instead.pop(DBOS.workflow_id or "", None)

        return work

    def _attempt(self, stored: dict[str, Any]) -> dict[str, Any]:
        task_id = DBOS.workflow_id
        assert task_id is not None
        self.working.add(task_id)
        try:
            return self._work(task_id, stored)
        except Exception as wrong:
            # Of the store or of ours, and not how the run ended: it is found fallen, and taken up.
            self._failed(wrong)
            raise NotOurs from wrong
        finally:
            self.left.add(task_id)
            self.working.discard(task_id)

    def _work(self, task_id: str, stored: Mapping[str, Any]) -> dict[str, Any]:
        row = self._tables.row(self._store.worker, task_id)
        assert row is not None
        if row["executor_id"] != DBOS.executor_id:  # taken since the engine handed it out here
            raise NotOurs
        owned = Owned(self._store, self._tables, task_id, row["owner_xid"], row["executor_id"])
        result: Result | None = None
        try:
            if self.leaving:
                raise HandedOver
            result = self._wait_for(self._begin(rows.task(row), owned, stored))
            if result.outcome is Outcome.CANCELLED:  # whoever cancelled it has stored that
                owned.note({rows.OUTCOME: result.outcome.value, rows.FINISHED: time.time()})
        except (Cancelled, HandedOver) as gone:
            owned.requeue_own()
            if owned.record_stop() and result is None:  # cancelled, and no end was told of it here
                self._cancelled_before_start(task_id)
            raise NotOurs from gone
        self._instead[task_id] = partial(_failed_end, owned, result)
        return {"outcome": result.outcome.value, "body": dict(result.body)}

    def _wait_for(self, attempt: Attempt) -> Result:
        """The run has a deadline, so this wait has one."""
        work: Any = self._execute(attempt)
        result: Result = asyncio.run_coroutine_threadsafe(work, self._loop).result()
        return result

    def _begin(self, known: Task, owned: Owned, stored: Mapping[str, Any]) -> Attempt:
        request = payload.request(stored)
        started_at = known.started_at or time.time()
        # An end that was noted and not stored has not come: this attempt ends anew.
        noted: dict[str, Any] = {
            rows.STARTED_TOKEN: owned.token,
            rows.ATTEMPTS: known.attempts + 1,
            rows.OUTCOME: None,
        }
        if known.started_at is None:
            noted |= {rows.STARTED: started_at, rows.DEADLINE: started_at + request.timeout_s}
        owned.note(noted)
        log = self._tables.log(self._store.worker, known.id, 0) if known.started_at else []
        return Attempt(
            task_id=known.id,
            agent=known.agent,
            request=request,
            number=known.attempts + 1,
            resumed=known.started_at is not None,
            created_at=known.created_at,
            started_at=started_at,
            log=log,
            write=lambda place, entry: self._asked(owned.append, place, entry),
            check=lambda: self._asked(owned.check),
            end=lambda outcome: self._asked(
                owned.end, {rows.OUTCOME: outcome.value, rows.FINISHED: time.time()}
            ),
            claim_token=owned.token or "",
            traceparent=stored.get("traceparent"),
        )

    async def _asked(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            await asyncio.wrap_future(self._store.in_thread(work, *arguments))
        except (sa.exc.SQLAlchemyError, *BAD_CONTENT) as refused:
            raise NotStorable if refuses_content(refused) else StoreUnavailable from refused


def _failed_end(owned: Owned, result: Result) -> dict[str, Any]:
    owned.note({rows.OUTCOME: Outcome.FAILED.value})
    return {"outcome": Outcome.FAILED.value, "body": dict(result.problem())}
