"""Executes runs that the engine hands out, each on a thread that waits for the service's loop."""

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


class NotOwned(BaseException):
    """Ends the thread of a workflow without an outcome: this process must not end the run.

    It is no Exception: the engine would record one as the end of the run. It is no error of the
    engine either: the engine would then keep the thread until another process has ended the run.
    """


class Worker:
    """Has the workflow that the engine calls.

    `executing` are the runs that execute here. `recently_executed` are those that stopped here and
    whose steps the supervisor has not deleted.
    """

    def __init__(
        self,
        store: Store,
        tables: Tables,
        execute: Execute,
        loop: asyncio.AbstractEventLoop,
        failed: Callable[[BaseException], None],
        cancelled_before_start: Callable[[str], None],
    ) -> None:
        self.executing: set[str] = set()
        self.recently_executed: set[str] = set()
        self.is_stopping = False
        self._store = store
        self._tables = tables
        self._execute = execute
        self._loop = loop
        self._failed = failed
        self._cancelled_before_start = cancelled_before_start
        # By run, the result to store if the store refuses its own.
        self._replacements: dict[str, Callable[[], dict[str, Any]]] = {}

    def workflow(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Return a workflow of one step: the engine does not repeat a step with a result."""

        def work(stored: dict[str, Any]) -> dict[str, Any]:
            try:
                return DBOS.run_step({"name": "agent"}, self._attempt, stored)
            except Exception as wrong:
                # The result could not be stored. The engine would store this error as the end.
                self._failed(wrong)
                replacement = self._replacements.get(DBOS.workflow_id or "")
                if replacement is None or not refuses_content(wrong):
                    raise NotOwned from wrong
                return replacement()  # another attempt would fail in the same way
            finally:
                self._replacements.pop(DBOS.workflow_id or "", None)

        return work

    def _attempt(self, stored: dict[str, Any]) -> dict[str, Any]:
        task_id = DBOS.workflow_id
        assert task_id is not None
        self.executing.add(task_id)
        try:
            return self._work(task_id, stored)
        except Exception as wrong:
            # An error of the store or of ours is no outcome. The supervisor requeues the run.
            self._failed(wrong)
            raise NotOwned from wrong
        finally:
            self.recently_executed.add(task_id)
            self.executing.discard(task_id)

    def _work(self, task_id: str, stored: Mapping[str, Any]) -> dict[str, Any]:
        row = self._tables.row(self._store.worker, task_id)
        assert row is not None
        if row["executor_id"] != DBOS.executor_id:  # another process has taken it over
            raise NotOwned
        owned = Owned(self._store, self._tables, task_id, row["owner_xid"], row["executor_id"])
        result: Result | None = None
        try:
            if self.is_stopping:
                raise HandedOver
            result = self._wait_for(self._begin(rows.task(row), owned, stored))
            if result.outcome is Outcome.CANCELLED:  # the cancellation itself is already stored
                owned.merge_attributes(_ended(result.outcome))
        except (Cancelled, HandedOver) as lost:
            owned.requeue_own()
            if owned.record_stop() and result is None:  # cancelled, and nobody emitted an end
                self._cancelled_before_start(task_id)
            raise NotOwned from lost
        self._replacements[task_id] = partial(_failed_end, owned, result)
        return {"outcome": result.outcome.value, "body": dict(result.body)}

    def _wait_for(self, attempt: Attempt) -> Result:
        """Wait for the result. The deadline of the run bounds this wait."""
        work: Any = self._execute(attempt)
        result: Result = asyncio.run_coroutine_threadsafe(work, self._loop).result()
        return result

    def _begin(self, known: Task, owned: Owned, stored: Mapping[str, Any]) -> Attempt:
        request = payload.request(stored)
        started_at = known.started_at or time.time()
        # A former attempt may have stored an outcome without a result. It does not count.
        attributes: dict[str, Any] = {
            rows.STARTED_TOKEN: owned.token,
            rows.ATTEMPTS: known.attempts + 1,
            rows.OUTCOME: None,
        }
        if known.started_at is None:
            attributes |= {rows.STARTED: started_at, rows.DEADLINE: started_at + request.timeout_s}
        owned.merge_attributes(attributes)
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
            write=lambda offset, entry: self._in_thread(owned.append, offset, entry),
            check=lambda: self._in_thread(owned.check),
            check_blocking=lambda timeout_s: self._check_blocking(owned, timeout_s),
            end=lambda outcome: self._in_thread(owned.end, _ended(outcome)),
            claim_token=owned.token or "",
            traceparent=stored.get("traceparent"),
        )

    def _check_blocking(self, owned: Owned, timeout_s: float) -> None:
        """Check on a thread of the store, since the blocked thread may be that of the loop."""
        checking = self._store.in_thread(owned.check)
        try:
            checking.result(timeout_s)
        except (sa.exc.SQLAlchemyError, TimeoutError) as refused:
            checking.cancel()
            raise StoreUnavailable from refused

    async def _in_thread(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            await asyncio.wrap_future(self._store.in_thread(work, *arguments))
        except (sa.exc.SQLAlchemyError, *BAD_CONTENT) as refused:
            raise NotStorable if refuses_content(refused) else StoreUnavailable from refused


def _ended(outcome: Outcome) -> dict[str, Any]:
    return {rows.OUTCOME: outcome.value, rows.FINISHED: time.time()}


def _failed_end(owned: Owned, result: Result) -> dict[str, Any]:
    owned.merge_attributes({rows.OUTCOME: Outcome.FAILED.value})
    return {"outcome": Outcome.FAILED.value, "body": dict(result.problem())}
