"""Stores conversations, by agent and thread. One run at a time leases a thread."""

import time
import uuid
from typing import Any

import sqlalchemy as sa

from app.runs.errors import HandedOver, InFlight
from app.tasks.queries import Queries
from app.tasks.schema import THREADS, upsert
from app.tasks.states import LIVE, is_over, state_of
from app.tasks.store import Store
from app.tasks.tables import Tables, is_storable

_NO_LEASE = 0.0
_DELETE_LEASE_S = 5.0


class ConversationStore:
    """The lease of a background run ends with the run; that of any other run has a time limit."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tables = Tables(is_file=store.is_file)

    async def acquire(self, agent: str, thread_id: str, run_id: str, lease_s: float) -> None:
        """Lease a thread to a run. Raises InFlight if another run has it."""
        if not await self._store.call(self._acquire, agent, thread_id, run_id, lease_s):
            raise InFlight

    def _acquire(self, agent: str, thread_id: str, run_id: str, lease_s: float) -> bool:
        now = time.time()
        lease = {"held_by": run_id, "held_until": now + lease_s}
        row = {"agent": agent, "thread_id": thread_id, "updated_at": now, **lease}
        if upsert(self._store, THREADS, row, lease, THREADS.c.held_by.is_(None)):
            return True
        holder = sa.select(THREADS.c.held_by, THREADS.c.held_until).where(_is(agent, thread_id))
        with self._store.calls.connect() as connection:
            found = connection.execute(holder).one_or_none()
        if found is None or not self._is_free(found.held_by, found.held_until, run_id, now):
            return False
        # Two runs may find the same lease ended: only one finds the holder unchanged here.
        unchanged = sa.and_(
            _is(agent, thread_id), THREADS.c.held_by.is_not_distinct_from(found.held_by)
        )
        return bool(self._execute(sa.update(THREADS).where(unchanged).values(lease)))

    def _is_free(self, held_by: str | None, held_until: float, run_id: str, now: float) -> bool:
        """Whether the lease has ended. A background run's lease ends with the run."""
        if held_by in (None, run_id):
            return True
        row = Queries(self._tables, self._store.calls).row(str(held_by))
        return held_until < now if row is None else state_of(row) not in LIVE

    async def release(self, agent: str, thread_id: str, run_id: str) -> None:
        """End the run's lease of a thread."""
        own = sa.and_(_is(agent, thread_id), THREADS.c.held_by == run_id)
        released = sa.update(THREADS).where(own).values(held_by=None, held_until=_NO_LEASE)
        await self._store.call(self._execute, released)

    async def read(self, agent: str, thread_id: str) -> str | None:
        """Return the stored text, or None for an unknown thread."""
        if not (is_storable(agent) and is_storable(thread_id)):
            return None

        def read() -> str | None:
            chosen = sa.select(THREADS.c.said).where(_is(agent, thread_id))
            with self._store.calls.connect() as connection:
                return connection.execute(chosen).scalar_one_or_none()

        return await self._store.call(read)

    async def write(self, agent: str, thread_id: str, run_id: str, text: str) -> None:
        """Replace the stored text, for the run that leases the thread.

        Raises HandedOver if another run leases it, or if the run was cancelled meanwhile.
        """
        run = self._tables.runs.c
        over = sa.select(run.workflow_uuid).where(
            run.workflow_uuid == run_id, is_over(self._tables)
        )
        own = sa.and_(_is(agent, thread_id), THREADS.c.held_by == run_id, ~over.exists())
        replaced = sa.update(THREADS).where(own).values(said=text, updated_at=time.time())
        if not await self._store.call(self._execute, replaced):
            raise HandedOver

    async def delete(self, agent: str, thread_id: str) -> bool:
        """Delete a thread. Returns whether it was known. Raises InFlight while a run leases it."""
        if not (is_storable(agent) and is_storable(thread_id)):
            return False
        deleter = f"delete {uuid.uuid4()}"
        await self.acquire(agent, thread_id, deleter, _DELETE_LEASE_S)
        known = await self.read(agent, thread_id) is not None
        own = sa.and_(_is(agent, thread_id), THREADS.c.held_by == deleter)
        await self._store.call(self._execute, sa.delete(THREADS).where(own))
        return known

    def purge(self, before: float) -> None:
        """Delete conversations that nobody has continued since that moment. Blocks.

        A background run that has not ended keeps its thread, however long it waits.
        """
        runs = self._tables.runs.c
        live = sa.select(runs.workflow_uuid).where(
            runs.workflow_uuid == THREADS.c.held_by, ~is_over(self._tables)
        )
        idle = sa.and_(
            THREADS.c.updated_at < before, THREADS.c.held_until < time.time(), ~live.exists()
        )
        with self._store.calls.begin() as connection:
            connection.execute(sa.delete(THREADS).where(idle))

    def _execute(self, statement: Any) -> int:
        with self._store.change() as connection:
            return connection.execute(statement).rowcount


def _is(agent: str, thread_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(THREADS.c.agent == agent, THREADS.c.thread_id == thread_id)
