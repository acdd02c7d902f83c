"""Conversations and idempotency keys, in tables of our own beside the engine's."""

import json
import time
import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from app.runs.errors import HandedOver, InFlight, KeyReused
from app.runs.tasks import Body
from app.tasks.rows import OVER
from app.tasks.store import Store
from app.tasks.tables import Tables, is_storable

_KEEP_KEYS_S = 24 * 3600.0
_NOBODY = 0.0
_FORGET_S = 5.0
_METADATA = sa.MetaData()
# `held_by` is the run that has the row, until `held_until`; both on the wall clock of callers.
_THREADS = sa.Table(
    "watchkeeper_threads",
    _METADATA,
    sa.Column("agent", sa.Text, primary_key=True),
    sa.Column("thread_id", sa.Text, primary_key=True),
    sa.Column("said", sa.Text),
    sa.Column("held_by", sa.Text),
    sa.Column("held_until", sa.Float, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
)
_KEYS = sa.Table(
    "watchkeeper_keys",
    _METADATA,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("held_by", sa.Text, nullable=False),
    sa.Column("held_until", sa.Float, nullable=False),
    sa.Column("body", sa.Text),
)


def create(store: Store) -> None:
    """Make the tables where they are missing; two that do so at once collide. Blocks."""
    with store.worker.begin() as connection:  # which waits for others that write
        _METADATA.create_all(connection)


def purge(store: Store, before: float) -> None:
    """Drop conversations that nobody went on with since then, and keys past their day. Blocks.

    A background run that has not ended keeps its thread, however long it waits.
    """
    runs = Tables(is_file=store.is_file).runs.c
    with store.calls.begin() as connection:
        held = sa.select(runs.workflow_uuid).where(
            runs.workflow_uuid == _THREADS.c.held_by, runs.status.not_in(OVER)
        )
        idle = sa.and_(
            _THREADS.c.updated_at < before,
            _THREADS.c.held_until < time.time(),
            ~held.exists(),
        )
        connection.execute(sa.delete(_THREADS).where(idle))
        connection.execute(sa.delete(_KEYS).where(_KEYS.c.held_until < time.time()))


class Threads:
    """Conversations; a background run has its thread until it has ended, however long that is."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tables = Tables(is_file=store.is_file)

    async def acquire(self, agent: str, thread_id: str, run_id: str, lease_s: float) -> None:
        """Take a thread for a run. Raises InFlight when another run has it."""
        if not await self._store.call(self._acquire, agent, thread_id, run_id, lease_s):
            raise InFlight

    def _acquire(self, agent: str, thread_id: str, run_id: str, lease_s: float) -> bool:
        now = time.time()
        taken = {"held_by": run_id, "held_until": now + lease_s}
        row = {"agent": agent, "thread_id": thread_id, "updated_at": now, **taken}
        if _upsert(self._store, _THREADS, row, taken, _THREADS.c.held_by.is_(None)):
            return True
        held = sa.select(_THREADS.c.held_by, _THREADS.c.held_until).where(_is(agent, thread_id))
        with self._store.calls.connect() as connection:
            found = connection.execute(held).one_or_none()
        if found is None or not self._is_free(found.held_by, found.held_until, run_id, now):
            return False
        # Only from whom it was seen with: two that find it free must not both have it.
        seen = sa.and_(
            _is(agent, thread_id), _THREADS.c.held_by.is_not_distinct_from(found.held_by)
        )
        return bool(self._execute(sa.update(_THREADS).where(seen).values(taken)))

    def _is_free(self, held_by: str | None, held_until: float, run_id: str, now: float) -> bool:
        """Held by nobody any more: a background run holds until it has ended, not until a time."""
        if held_by in (None, run_id):
            return True
        states = self._tables.states(self._store.calls, [str(held_by)])
        if str(held_by) in states:
            return states[str(held_by)][0] in OVER
        return held_until < now

    async def release(self, agent: str, thread_id: str, run_id: str) -> None:
        """Give a thread back."""
        mine = sa.and_(_is(agent, thread_id), _THREADS.c.held_by == run_id)
        released = sa.update(_THREADS).where(mine).values(held_by=None, held_until=_NOBODY)
        await self._store.call(self._execute, released)

    async def read(self, agent: str, thread_id: str) -> str | None:
        """What was kept, or None for a thread that is not known."""
        if not (is_storable(agent) and is_storable(thread_id)):
            return None

        def read() -> str | None:
            chosen = sa.select(_THREADS.c.said).where(_is(agent, thread_id))
            with self._store.calls.connect() as connection:
                return connection.execute(chosen).scalar_one_or_none()

        return await self._store.call(read)

    async def write(self, agent: str, thread_id: str, run_id: str, text: str) -> None:
        """Keep this, in the place of what was kept, for the run that has the thread.

        Raises HandedOver when the thread is another run's, or the run was cancelled meanwhile.
        """
        run = self._tables.runs.c
        over = sa.select(run.workflow_uuid).where(run.workflow_uuid == run_id, run.status.in_(OVER))
        mine = sa.and_(_is(agent, thread_id), _THREADS.c.held_by == run_id, ~over.exists())
        said = sa.update(_THREADS).where(mine).values(said=text, updated_at=time.time())
        if not await self._store.call(self._execute, said):
            raise HandedOver

    async def delete(self, agent: str, thread_id: str) -> bool:
        """Drop a thread; false if it was not known. Raises InFlight while a run has it."""
        if not (is_storable(agent) and is_storable(thread_id)):
            return False
        me = f"forgets {uuid.uuid4()}"
        await self.acquire(agent, thread_id, me, _FORGET_S)
        known = await self.read(agent, thread_id) is not None
        mine = sa.and_(_is(agent, thread_id), _THREADS.c.held_by == me)
        await self._store.call(self._execute, sa.delete(_THREADS).where(mine))
        return known

    def _execute(self, statement: Any) -> int:
        with self._store.change() as connection:
            return connection.execute(statement).rowcount


class Keys:
    """Idempotency keys of runs with a waiting caller; in flight until their run must be over."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def acquire(self, key: str, fingerprint: str, run_id: str, lease_s: float) -> Body | None:
        """Take a key for a run; the body to replay if one with that key has ended.

        Raises InFlight, or KeyReused when the fingerprint is another one.
        """
        return await self._store.call(self._acquire, key, fingerprint, run_id, lease_s)

    def _acquire(self, key: str, fingerprint: str, run_id: str, lease_s: float) -> Body | None:
        now = time.time()
        taken = {
            "fingerprint": fingerprint,
            "held_by": run_id,
            "held_until": now + lease_s,
            "body": None,
        }
        # A repeat is read and not written: a crowd of them would wait for each other's locks.
        known = self._known(key)
        if known is None or known.held_until < now:
            if _upsert(self._store, _KEYS, {"key": key, **taken}, taken, _KEYS.c.held_until < now):
                return None
            known = self._known(key)
        if known is None:  # freed this moment: the caller is to ask again
            raise InFlight
        if known.fingerprint != fingerprint:
            raise KeyReused
        if known.body is None:
            raise InFlight
        body: Body = json.loads(known.body)
        return body

    def _known(self, key: str) -> Any:
        with self._store.calls.connect() as connection:
            return connection.execute(sa.select(_KEYS).where(_KEYS.c.key == key)).one_or_none()

    async def store(self, key: str, run_id: str, body: Body) -> None:
        """Remember what the run answered."""
        mine = sa.and_(_KEYS.c.key == key, _KEYS.c.held_by == run_id)
        kept = {"body": json.dumps(dict(body)), "held_until": time.time() + _KEEP_KEYS_S}
        await self._store.call(self._execute, sa.update(_KEYS).where(mine).values(kept))

    async def release(self, key: str, run_id: str) -> None:
        """The run gave nothing to remember: the next one with this key starts anew."""
        mine = sa.and_(_KEYS.c.key == key, _KEYS.c.held_by == run_id)
        await self._store.call(self._execute, sa.delete(_KEYS).where(mine))

    def _execute(self, statement: Any) -> None:
        with self._store.change() as connection:
            connection.execute(statement)


def _is(agent: str, thread_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(_THREADS.c.agent == agent, _THREADS.c.thread_id == thread_id)


def _upsert(
    store: Store,
    table: sa.Table,
    row: dict[str, Any],
    changed: dict[str, Any],
    where: sa.ColumnElement[bool],
) -> bool:
    """Insert a row, or change the one there is where it may be; false if it may not."""
    insert = (sqlite if store.is_file else postgresql).insert(table).values(row)
    keys = [column.name for column in table.primary_key]
    statement = insert.on_conflict_do_update(index_elements=keys, set_=changed, where=where)
    changed_one = statement.returning(sa.literal(True))
    with store.change() as connection:
        return connection.execute(changed_one).scalar_one_or_none() is not None
