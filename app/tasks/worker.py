"""Executes runs that the engine hands out, each on a thread that waits for the service's loop."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import sqlalchemy as sa
from dbos import DBOS

from app.runs.errors import Cancelled, HandedOver, NotStorable, StoreUnavailable
from app.runs.ports import Execute
from app.runs.tasks import AttemptStart, Body, Result
from app.tasks import payload
from app.tasks.claims import claim_of_this_thread
from app.tasks.journal import Journal
from app.tasks.queries import Queries
from app.tasks.rows import ATTEMPTS, CREATED, STARTED
from app.tasks.store import BAD_CONTENT, Store, refuses_content
from app.tasks.tables import Tables
from app.tasks.transitions import Claim

T = TypeVar("T")


class Released(BaseException):
    """Ends the thread of a workflow: the end of the run is stored, or is not ours to store.

    It is no Exception: the engine would record one as the end of the run. It is no error of the
    engine either: the engine would then keep the thread until another process has ended the run.
    """


class Worker:
    """Has the workflow that the engine calls, and knows the claims that execute here."""

    def __init__(
        self,
        store: Store,
        tables: Tables,
        execute: Execute,
        loop: asyncio.AbstractEventLoop,
        journal: Journal,
        *,
        stopped: Callable[[str], None],
        failed: Callable[[BaseException], None],
        cancelled: Callable[[str], None],
    ) -> None:
        self.is_stopping = False
        self._store = store
        self._tables = tables
        self._queries = Queries(tables, store.worker)
        self._execute = execute
        self._loop = loop
        self._journal = journal
        self._stopped = stopped
        self._failed = failed
        self._cancelled = cancelled
        self._claims: set[Claim] = set()
        self._lock = threading.Lock()
        # Set while nothing executes here; on the loop.
        self.idle = asyncio.Event()
        self.idle.set()

    def claims(self) -> frozenset[Claim]:
        """Return the claims whose attempts execute here at this moment."""
        with self._lock:
            return frozenset(self._claims)

    def workflow(self) -> Callable[[dict[str, Any]], NoReturn]:
        """Return a workflow for one agent. The engine notes things on it, so each is new.

        An attempt stores its own end, so the engine has nothing left to store.
        """

        def work(stored: dict[str, Any]) -> NoReturn:
            self._work(stored)
            raise Released

        return work

    def _work(self, stored: dict[str, Any]) -> None:
        token, task_id = claim_of_this_thread()
        claim = Claim(self._store, self._tables, task_id, token, DBOS.executor_id)
        self._note(self._claims.add, claim)
        try:
            self._attempt(claim, stored)
        except Exception as wrong:  # noqa: BLE001 - the engine would store it as the end of the run
            # An error of the store or of ours is no outcome. The recovery requeues the run.
            self._failed(wrong)
        finally:
            self._journal.delete(claim)
            self._note(self._claims.discard, claim)
            self._stopped(task_id)

    def _note(self, change: Callable[[Claim], None], claim: Claim) -> None:
        with self._lock:
            change(claim)
            change_idle = self.idle.clear if self._claims else self.idle.set
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(change_idle)

    def _attempt(self, claim: Claim, stored: Mapping[str, Any]) -> None:
        try:
            if self.is_stopping:
                raise HandedOver
            self._wait_for(self._execute(self._start(claim, stored)))
        except Cancelled:
            if not claim.hand_over():
                claim.report_stop()  # unless the attempt has done so, with its result
        except HandedOver:
            if claim.hand_over():
                return
            if claim.report_stop():  # cancelled as it was handed over: nobody emitted an end
                self._cancelled(claim.task_id)
            else:
                claim.survived()

    def _start(self, claim: Claim, stored: Mapping[str, Any]) -> "StoredAttempt":
        request = payload.request(stored)
        row = claim.start(request.timeout_s)
        attributes = row["attributes"]
        number = attributes[ATTEMPTS]
        created_at = attributes.get(CREATED, row["created_at"] / 1000)
        # The start on the row is by the clock of the database; the run needs this process's.
        ahead_s = time.time() - row["now"]
        start = AttemptStart(
            task_id=claim.task_id,
            agent=row["name"],
            request=request,
            number=number,
            resumed=number > 1,
            created_at=created_at,
            started_at=attributes[STARTED] + ahead_s,
            log=self._queries.log(claim.task_id, 0) if number > 1 else [],
            claim_token=claim.token,
            queued_s=max(0.0, attributes[STARTED] - created_at),
            traceparent=stored.get("traceparent"),
        )
        return StoredAttempt(self._store, self._journal, claim, start)

    def _wait_for(self, work: Awaitable[None]) -> None:
        """Wait for the end of an attempt. The deadline of the run bounds this wait."""
        running: Any = work
        asyncio.run_coroutine_threadsafe(running, self._loop).result()


class StoredAttempt:
    """An attempt at a run, whose events and end the store keeps."""

    def __init__(self, store: Store, journal: Journal, claim: Claim, start: AttemptStart) -> None:
        self.start = start
        self._store = store
        self._journal = journal
        self._claim = claim

    async def write(self, offset: int, row: Mapping[str, Any]) -> None:
        """Store a row of the log under its number."""
        size_bytes = len(payload.text(row))
        self._journal.add(self._claim, self._claim.appending(offset, row), size_bytes)
        await self._journal.flushed(self._claim)
        if row.get("trace"):
            await self._in_thread(self._claim.store_trace, row["trace"])

    async def check(self) -> None:
        """Confirm that this attempt still has the run."""
        await self._journal.flushed(self._claim)

    def check_blocking(self, timeout_s: float) -> None:
        """The same, for code that cannot await. The journal's thread needs no loop."""
        checking = self._journal.flushing(self._claim)
        try:
            checking.result(timeout_s)
        except TimeoutError as late:
            checking.cancel()
            raise StoreUnavailable from late

    async def end(self, result: Result, offset: int, row: Mapping[str, Any] | None) -> None:
        """Store the result, after which nobody can cancel the run, and the last row of the log."""
        await self._in_thread(self._claim.end, result, offset, row)

    async def report_stop(self, body: Body, *, stuck: bool) -> None:
        """Store how this cancelled run stopped."""
        await self._in_thread(lambda: self._claim.report_stop(body, stuck=stuck))

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        try:
            return await asyncio.wrap_future(self._store.in_thread(work, *arguments))
        except (sa.exc.SQLAlchemyError, *BAD_CONTENT) as refused:
            raise NotStorable if refuses_content(refused) else StoreUnavailable from refused
