"""Pages of background runs, newest first.

The engine's own listing filters by neither outcome nor position.
"""

import base64
import json

import sqlalchemy as sa

from app.runs.tasks import Task, TaskQuery, TaskStatus
from app.tasks import payload
from app.tasks.states import RunState, in_state
from app.tasks.tables import Tables, is_storable


def page(tables: Tables, engine: sa.Engine, query: TaskQuery) -> tuple[list[Task], str | None]:
    """Return a page and the cursor of the next one.

    A cursor is a position, so new runs do not shift the pages. Raises ValueError for an invalid
    cursor.
    """
    if not is_storable(query.agent or ""):
        return [], None
    run = tables.runs.c
    position = tables.position.label("position")
    chosen = sa.select(*tables.runs.c, tables.now.label("now"), position).select_from(tables.runs)
    chosen = chosen.order_by(run.created_at.desc(), position.desc())
    if query.agent is not None:
        chosen = chosen.where(run.name == query.agent)
    if query.status is not None:
        chosen = chosen.where(_has(tables, query.status))
    if query.cursor is not None:
        created, before = _parsed(query.cursor)
        if isinstance(before, int) is not tables.is_file:
            raise ValueError(query.cursor)
        earlier = sa.tuple_(run.created_at, tables.position) < sa.tuple_(
            sa.literal(created), sa.literal(before)
        )
        chosen = chosen.where(earlier)
    with engine.connect() as connection:
        rows = connection.execute(chosen.limit(query.limit + 1)).mappings().all()
    tasks = [payload.task(dict(row)) for row in rows[: query.limit]]
    if len(rows) <= query.limit:
        return tasks, None
    last = rows[query.limit - 1]
    return tasks, _cursor(last["created_at"], last["position"])


def _has(tables: Tables, status: TaskStatus) -> sa.ColumnElement[bool]:
    return in_state(tables, *(state for state in RunState if state.as_status is status))


def _cursor(created: int, position: int | str) -> str:
    return base64.urlsafe_b64encode(json.dumps([created, position]).encode()).decode()


def _parsed(cursor: str) -> tuple[int, int | str]:
    """Raises ValueError for a cursor that this service did not issue."""
    try:
        parsed = json.loads(base64.urlsafe_b64decode(cursor.encode()))
    except RecursionError as deep:
        raise ValueError(cursor) from deep
    match parsed:
        case [int(created), str(position)] if _is_moment(created) and "\0" not in position:
            return created, position
        case [int(created), int(position)] if _is_moment(created) and _is_moment(position):
            return created, position
        case _:
            raise ValueError(cursor)


def _is_moment(number: int) -> bool:
    """Whether a database can compare the number."""
    return type(number) is int and 0 <= number < 2**63
