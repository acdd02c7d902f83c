"""Stores what runs with a waiting caller answered, by Idempotency-Key, so repeats replay it."""

import json
from functools import partial
from typing import Any

import sqlalchemy as sa

from app.runs.errors import InFlight, KeyReused
from app.runs.tasks import Body
from app.tasks.schema import KEYS, TENANT, lease
from app.tasks.store import Store

_REPLAYED_FOR_S = 24 * 3600.0


class IdempotencyKeyStore:
    """A key is in flight until its run answers, or until the run's lease of the key ends."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def acquire(self, key: str, fingerprint: str, run_id: str, lease_s: float) -> Body | None:
        """Lease a key to a run. Returns the body to replay if a run with this key has answered.

        Raises InFlight if another run has the key, KeyReused if its fingerprint differs.
        """

        def undo(answered: Body | None) -> None:
            if answered is None:
                with self._store.worker.begin() as connection:
                    connection.execute(_releasing(key, run_id))

        acquiring = partial(self._acquire, key, fingerprint, run_id, lease_s)
        return await self._store.acquire(acquiring, undo)

    def _acquire(self, key: str, fingerprint: str, run_id: str, lease_s: float) -> Body | None:
        now = self._store.now
        leased = {
            "fingerprint": fingerprint,
            "held_by": run_id,
            "held_until": now + lease_s,
            "body": None,
        }
        # A repeat only reads: a crowd of repeats that write would wait for each other's locks.
        row = self._row(key)
        if row is None or row.is_over:
            name = {"tenant": TENANT, "key": key}
            expired = sa.and_(_is(key), KEYS.c.held_until < now)
            if lease(self._store, KEYS, {**name, **leased}, leased, expired) is not None:
                return None
            row = self._row(key)
        if row is None:  # released at this moment: the caller repeats the request
            raise InFlight
        if row.fingerprint != fingerprint:
            raise KeyReused
        if row.body is None:
            raise InFlight
        body: Body = json.loads(row.body)
        return body

    def _row(self, key: str) -> Any:
        is_over = (KEYS.c.held_until < self._store.now).label("is_over")
        chosen = sa.select(KEYS.c.fingerprint, KEYS.c.body, is_over).where(_is(key))
        with self._store.calls.connect() as connection:
            return connection.execute(chosen).one_or_none()

    async def store(self, key: str, run_id: str, body: Body) -> None:
        """Store what the run answered."""
        own = sa.and_(_is(key), KEYS.c.held_by == run_id)
        until = self._store.now + _REPLAYED_FOR_S
        answered = {"body": json.dumps(dict(body)), "held_until": until}
        await self._store.call(self._execute, sa.update(KEYS).where(own).values(answered))

    async def release(self, key: str, run_id: str) -> None:
        """End the lease of a run without an answer to replay: the next run with this key is new."""
        await self._store.call(self._execute, _releasing(key, run_id))

    def purge(self) -> None:
        """Delete keys whose lease, or time of replay, has ended. Blocks."""
        with self._store.calls.begin() as connection:
            # As a value, since PostgreSQL uses no index for a comparison with its clock.
            now = connection.execute(sa.select(self._store.now)).scalar_one()
            connection.execute(sa.delete(KEYS).where(KEYS.c.held_until < now))

    def _execute(self, statement: Any) -> None:
        with self._store.change() as connection:
            connection.execute(statement)


def _releasing(key: str, run_id: str) -> sa.Delete:
    return sa.delete(KEYS).where(_is(key), KEYS.c.held_by == run_id)


def _is(key: str) -> sa.ColumnElement[bool]:
    return sa.and_(KEYS.c.tenant == TENANT, KEYS.c.key == key)
