"""The tables of our own in the store, beside those of the engine, and the statement they share."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from app.tasks.store import Store

_METADATA = sa.MetaData()
# A run leases a row: `held_by` is its id, `held_until` the end of the lease on the wall clock.
THREADS = sa.Table(
    "watchkeeper_threads",
    _METADATA,
    sa.Column("agent", sa.Text, primary_key=True),
    sa.Column("thread_id", sa.Text, primary_key=True),
    sa.Column("said", sa.Text),
    sa.Column("held_by", sa.Text),
    sa.Column("held_until", sa.Float, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
)
KEYS = sa.Table(
    "watchkeeper_keys",
    _METADATA,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("held_by", sa.Text, nullable=False),
    sa.Column("held_until", sa.Float, nullable=False),
    sa.Column("body", sa.Text),
)


def upsert(
    store: Store,
    table: sa.Table,
    row: dict[str, Any],
    changed: dict[str, Any],
    where: sa.ColumnElement[bool],
) -> bool:
    """Insert a row, or change the existing one if `where` holds for it. Returns whether it did."""
    insert = (sqlite if store.is_file else postgresql).insert(table).values(row)
    keys = [column.name for column in table.primary_key]
    statement = insert.on_conflict_do_update(index_elements=keys, set_=changed, where=where)
    returning = statement.returning(sa.literal(True))
    with store.change() as connection:
        return connection.execute(returning).scalar_one_or_none() is not None
