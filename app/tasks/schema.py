"""The tables of our own in the store, beside those of the engine, and the statement they share.

`app/tasks/migrations.py` creates them.
"""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from app.tasks.store import Store

# Until callers have API keys, everything belongs to this tenant.
TENANT = ""
_METADATA = sa.MetaData()
# A run leases a row: `held_by` is its id, `held_until` the end of the lease on the store's clock.
THREADS = sa.Table(
    "watchkeeper_threads",
    _METADATA,
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("agent", sa.Text, primary_key=True),
    sa.Column("thread_id", sa.Text, primary_key=True),
    sa.Column("said", sa.Text),
    sa.Column("held_by", sa.Text),
    sa.Column("held_until", sa.Float, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
    sa.Column("key_id", sa.Text),
)
KEYS = sa.Table(
    "watchkeeper_keys",
    _METADATA,
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("held_by", sa.Text, nullable=False),
    sa.Column("held_until", sa.Float, nullable=False),
    sa.Column("body", sa.Text),
    sa.Column("key_id", sa.Text),
)


def lease(
    store: Store,
    table: sa.Table,
    row: Mapping[str, Any],
    changed: Mapping[str, Any],
    where: sa.ColumnElement[bool],
) -> float | None:
    """Insert a row, or change the existing one if `where`, which names it, holds for it.

    Returns the end of its lease, or None if it did neither. The statements name no unique key of
    the table, so that a newer version can replace it while this one is at work.
    """
    insert = (sqlite if store.is_file else postgresql).insert(table).values(row)
    until = table.c.held_until
    inserting = insert.on_conflict_do_nothing().returning(until)
    changing = sa.update(table).where(where).values(changed).returning(until)
    with store.change() as connection:
        inserted: float | None = connection.execute(inserting).scalar_one_or_none()
        if inserted is not None:
            return inserted
        return connection.execute(changing).scalar_one_or_none()
