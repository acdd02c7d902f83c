"""Stores conversations, by agent and thread. One run at a time leases a thread."""

import uuid
from functools import partial
from typing import Any

import sqlalchemy as sa

from app.runs.errors import HandedOver, InFlight
from app.tasks.queries import Queries
from app.tasks.schema import TENANT, THREADS, lease
from app.tasks.states import CLAIMS, in_state, is_over, state_of
from app.tasks.store import Store
from app.tasks.tables import Tables, is_storable

_RELEASED = {"held_by": None, "held_until": 0.0}
_DELETE_LEASE_S = 5.0


class ConversationStore:
    """The lease of a background run ends with the run; that of any other run has a time limit."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tables = Tables(is_file=store.is_file)

    async def acquire(self, agent: str, thread_id: str, run_id: str, lease_s: float) -> None:
        """Lease a thread to a run. Raises InFlight if another run has it."""

        def undo(until: float | None) -> None:
            if until is not None:
                self._release_late(agent, thread_id, run_id, until)

        acquiring = partial(self._acquire, agent, thread_id, run_id, lease_s)
        if await self._store.acquire(acquiring, undo) is None:
            raise InFlight

    def _acquire(self, agent: str, thread_id: str, run_id: str, lease_s: float) -> float | None:
        now = self._store.now
        leased = {"held_by": run_id, "held_until": now + lease_s}
        name = {"tenant": TENANT, "agent": agent, "thread_id": thread_id}
        unleased = sa.and_(_is(agent, thread_id), THREADS.c.held_by.is_(None))
        row = {**name, "updated_at": now, **leased}
        if (until := lease(self._store, THREADS, row, leased, unleased)) is not None:
            return until
        is_over = (THREADS.c.held_until < now).label("is_over")
        holder = sa.select(THREADS.c.held_by, is_over).where(_is(agent, thread_id))
        with self._store.calls.connect() as connection:
            found = connection.execute(holder).one_or_none()
        if found is None or not self._is_free(found.held_by, run_id, expired=found.is_over):
            return None
        # Two runs may find the same lease ended: only one finds the holder unchanged here.
        unchanged = sa.and_(
            _is(agent, thread_id), THREADS.c.held_by.is_not_distinct_from(found.held_by)
        )
        taking = sa.update(THREADS).where(unchanged).values(leased)
        with self._store.change() as connection:
            until = connection.execute(taking.returning(THREADS.c.held_until)).scalar_one_or_none()
        return until

    def _release_late(self, agent: str, thread_id: str, run_id: str, until: float) -> None:
        """Release a lease that was acquired after its caller had given up.

        A repeat of the caller's submission has the same run id. It may have leased the thread again
        since, until another moment, or have stored the run.
        """
        run = self._tables.runs.c
        stored = sa.select(run.workflow_uuid).where(run.workflow_uuid == run_id)
        same = sa.and_(
            _is(agent, thread_id), THREADS.c.held_by == run_id, THREADS.c.held_until == until
        )
        released = sa.update(THREADS).where(same, ~stored.exists()).values(_RELEASED)
        with self._store.worker.begin() as connection:
            connection.execute(released)

    def _is_free(self, held_by: str | None, run_id: str, *, expired: bool) -> bool:
        """Whether a lease has ended. `expired` says so of its time; some have the run's instead."""
        if held_by in (None, run_id):
            return True
        row = Queries(self._tables, self._store.calls).row(str(held_by))
        return expired if row is None else not state_of(row).is_live

    async def release(self, agent: str, thread_id: str, run_id: str) -> None:
        """End the run's lease of a thread."""
        own = sa.and_(_is(agent, thread_id), THREADS.c.held_by == run_id)
        released = sa.update(THREADS).where(own).values(_RELEASED)
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

    async def write(
        self, agent: str, thread_id: str, run_id: str, text: str, claim_token: str | None = None
    ) -> None:
        """Replace the stored text, for the run that leases the thread.

        Raises HandedOver if another run leases it, if the run was cancelled meanwhile, or if its
        claim token is another one by now.
        """
        own = sa.and_(_is(agent, thread_id), THREADS.c.held_by == run_id)
        may_write = (
            self._not_ended(run_id) if claim_token is None else self._owned(run_id, claim_token)
        )
        replaced = sa.update(THREADS).where(own, may_write)
        replacing = replaced.values(said=text, updated_at=self._store.now)
        if not await self._store.call(self._execute, replacing):
            raise HandedOver

    def _not_ended(self, run_id: str) -> sa.ColumnElement[bool]:
        run = self._tables.runs.c
        ended = sa.select(run.workflow_uuid).where(
            run.workflow_uuid == run_id, is_over(self._tables)
        )
        return ~ended.exists()

    def _owned(self, run_id: str, claim_token: str) -> sa.ColumnElement[bool]:
        """The attempt with that token owns the run, until the transaction has ended."""
        run = self._tables.runs.c
        owned = sa.select(run.workflow_uuid).where(
            run.workflow_uuid == run_id,
            in_state(self._tables, *CLAIMS),
            run.owner_xid == claim_token,
        )
        return owned.with_for_update(read=True).exists()

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

    def purge(self, keep_s: float) -> None:
        """Delete conversations that nobody has continued for so long. Blocks.

        A background run that has not ended keeps its thread, however long it waits.
        """
        runs = self._tables.runs.c
        live = sa.select(runs.workflow_uuid).where(
            runs.workflow_uuid == THREADS.c.held_by, ~is_over(self._tables)
        )
        with self._store.calls.begin() as connection:
            # As a value, since PostgreSQL uses no index for a comparison with its clock.
            now = connection.execute(sa.select(self._store.now)).scalar_one()
            idle = sa.and_(THREADS.c.updated_at < now - keep_s, THREADS.c.held_until < now)
            connection.execute(sa.delete(THREADS).where(idle, ~live.exists()))

    def _execute(self, statement: Any) -> int:
        with self._store.change() as connection:
            return connection.execute(statement).rowcount


def _is(agent: str, thread_id: str) -> sa.ColumnElement[bool]:
    thread = THREADS.c
    return sa.and_(thread.tenant == TENANT, thread.agent == agent, thread.thread_id == thread_id)
