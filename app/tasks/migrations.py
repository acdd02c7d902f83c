"""Numbered changes of our own tables, which each process applies when it opens the store.

A migration is never changed, and there is no way back: the version before it must go on working
with the changed tables, since both may use one store at the same time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from app.tasks.store import Store


@dataclass(frozen=True, slots=True)
class Migration:
    """Statements that SQLite and PostgreSQL both know; one transaction has them all."""

    number: int
    statements: tuple[str, ...]


class MigrationFailed(Exception):
    """A migration was refused and rolled back. Those before it are applied."""

    def __init__(self, number: int) -> None:
        super().__init__(f"migration {number} of its tables failed and changed nothing")


MIGRATIONS = (
    # Stores of the first version have these tables and no record of it.
    Migration(
        1,
        (
            """create table if not exists watchkeeper_threads (
                agent text not null, thread_id text not null, said text, held_by text,
                held_until double precision not null, updated_at double precision not null,
                primary key (agent, thread_id))""",
            """create table if not exists watchkeeper_keys (
                key text not null primary key, fingerprint text not null, held_by text not null,
                held_until double precision not null, body text)""",
        ),
    ),
    # Every row belongs to a tenant. `key_id` is the public id of the API key that wrote it.
    Migration(
        2,
        (
            "alter table watchkeeper_threads add column tenant text not null default ''",
            "alter table watchkeeper_threads add column key_id text",
            "alter table watchkeeper_keys add column tenant text not null default ''",
            "alter table watchkeeper_keys add column key_id text",
        ),
    ),
    # One row for each question of a run, numbered in the run: an agent that asks twice in one node
    # gives both questions one id. `question` and `answer` are JSON; text takes a NUL, as `\u0000`.
    # `decision` is how it ended: approve, edit, reject, respond, answer, expired or cancelled.
    Migration(
        3,
        (
            """create table watchkeeper_questions (
                tenant text not null default '', run_id text not null, number integer not null,
                interrupt_id text not null, agent text not null, thread_id text, key_id text,
                kind text not null, question text not null, asked_at double precision not null,
                expires_at double precision not null, decision text, answer text,
                answered_by text, answered_at double precision,
                primary key (tenant, run_id, number))""",
            """create index watchkeeper_questions_open on watchkeeper_questions (asked_at)
                where answered_at is null""",
            "create index watchkeeper_questions_run on watchkeeper_questions (run_id)",
        ),
    ),
    # What is deleted each minute. For its runs the engine has an index of its own.
    Migration(
        4,
        (
            "create index watchkeeper_threads_updated on watchkeeper_threads (updated_at)",
            "create index watchkeeper_keys_held on watchkeeper_keys (held_until)",
        ),
    ),
)

_APPLIED = sa.Table(
    "watchkeeper_migrations",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("applied_at", sa.Float, nullable=False),
)


def migrate(store: Store, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Apply, in order, the migrations that the store does not have. Blocks.

    The caller keeps other processes out. A store may have migrations that only a newer version
    knows: they are ignored. Raises MigrationFailed.
    """
    with store.worker.begin() as connection:  # this engine waits for other writers
        _APPLIED.create(connection, checkfirst=True)
        applied = set(connection.execute(sa.select(_APPLIED.c.number)).scalars())
    for migration in migrations:
        if migration.number not in applied:
            _apply(store, migration)


def _apply(store: Store, migration: Migration) -> None:
    row = {"number": migration.number, "applied_at": store.now}
    try:
        with store.worker.begin() as connection:
            # The row comes first: on SQLite only a row begins a transaction, and no `create` does.
            connection.execute(sa.insert(_APPLIED).values(row))
            for statement in migration.statements:
                connection.exec_driver_sql(statement)
    except sa.exc.SQLAlchemyError as refused:
        raise MigrationFailed(migration.number) from refused
