"""The engine's documented tables, as far as we use them, and the SQL that both stores share."""

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import JSONB

from app.tasks.store import now


def is_storable(name: str) -> bool:
    """Whether a row can have that name. PostgreSQL refuses a NUL even in a query."""
    return "\0" not in name


class Tables:
    """The columns that we use, in the schema of the engine."""

    def __init__(self, *, is_file: bool) -> None:
        schema = None if is_file else "dbos"
        self.is_file = is_file
        self.runs = sa.table(
            "workflow_status",
            *map(sa.column, ("workflow_uuid", "status", "name", "executor_id", "owner_xid")),
            sa.column("queue_name", sa.Text),
            sa.column("recovery_attempts", sa.BigInteger),
            sa.column("started_at_epoch_ms", sa.BigInteger),
            sa.column("created_at", sa.BigInteger),
            sa.column("completed_at", sa.BigInteger),
            sa.column("attributes", sa.JSON().with_variant(JSONB(), "postgresql")),
            schema=schema,
        )
        # Orders runs of the same `created_at`, which some versions of SQLite round to seconds.
        self.position = sa.column("rowid") if is_file else self.runs.c.workflow_uuid
        self.streams = sa.table(
            "streams",
            *map(sa.column, ("workflow_uuid", "key", "value")),
            *(sa.column(name, sa.Integer) for name in ("offset", "function_id")),
            schema=schema,
        )
        self.now = now(is_file=is_file)
        self.outputs = sa.table(
            "workflow_output", *map(sa.column, ("workflow_uuid", "output")), schema=schema
        )

    def insert_once(self, values: Mapping[str, Any]) -> sa.Insert:
        """Insert a row of a log, unless it exists."""
        once: sa.Insert = self._insert(self.streams).values(**values).on_conflict_do_nothing()
        return once

    def store_output(self, task_id: str, output: str) -> sa.Insert:
        """Store the result of a run where the engine's own listing reads it."""
        values = {"workflow_uuid": task_id, "output": output}
        stored: sa.Insert = (
            self._insert(self.outputs)
            .values(**values)
            .on_conflict_do_update(index_elements=["workflow_uuid"], set_={"output": output})
        )
        return stored

    def _insert(self, table: sa.TableClause) -> Any:
        return (sqlite if self.is_file else postgresql).insert(table)

    def updating(
        self,
        which: sa.ColumnElement[bool],
        attributes: Mapping[str, Any] | sa.ColumnElement[str],
        **columns: Any,
    ) -> sa.Update:
        """Merge attributes into the rows of runs, and set columns of theirs.

        The attributes are values, or the text of a JSON object as an expression.
        """
        text = attributes
        if isinstance(text, Mapping):
            text = sa.literal(json.dumps(dict(text)), sa.Text)
        run = self.runs.c
        merged: Any = (
            sa.func.json_patch(sa.func.coalesce(run.attributes, sa.text("'{}'")), text)
            if self.is_file
            # The engine stores missing attributes as a JSON null.
            else sa.func.coalesce(
                sa.func.nullif(run.attributes, sa.text("'null'::jsonb")), sa.text("'{}'::jsonb")
            ).op("||")(sa.cast(text, JSONB))
        )
        return sa.update(self.runs).where(which).values(attributes=merged, **columns)

    def json(self, **values: Any) -> sa.ColumnElement[str]:
        """Return a JSON object of expressions and plain values, as text."""
        pairs = [part for pair in values.items() for part in self._pair(*pair)]
        if self.is_file:
            return sa.func.json_object(*pairs, type_=sa.Text)
        return sa.cast(sa.func.jsonb_build_object(*pairs), sa.Text)

    def _pair(self, name: str, value: Any) -> tuple[Any, Any]:
        key: sa.ColumnElement[str] = sa.literal_column(f"'{name}'")
        if isinstance(value, sa.ColumnElement):
            return key, value
        if value is None:
            return key, sa.null()
        if self.is_file and isinstance(value, bool):  # SQLite has no type for it
            return key, sa.func.json(json.dumps(value))
        # PostgreSQL must know the type of each parameter.
        literal = sa.literal(value)
        return key, sa.cast(literal, literal.type)


def has_status(column: sa.ColumnElement[str], *names: str) -> sa.ColumnElement[bool]:
    """The status is one of these, as literals: a partial index does not serve parameters.

    SQLite finds no partial index for a list of one.
    """
    if len(names) == 1:
        return column == sa.bindparam("status", names[0], unique=True, literal_execute=True)
    literals: Any = sa.bindparam(
        "statuses", names, unique=True, expanding=True, literal_execute=True
    )
    return column.in_(literals)
