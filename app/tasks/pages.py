"""Pages of background runs, newest first.

The engine's own listing cannot filter by how a run ended, nor page by position.
"""

import base64
import json

import sqlalchemy as sa

from app.runs.model import Outcome
from app.runs.tasks import Task, TaskQuery, TaskStatus, status_of
from app.tasks.rows import LIVE, LOST, OUTCOME, task
from app.tasks.tables import Tables, has_status, is_storable


def page(tables: Tables, engine: sa.Engine, query: TaskQuery) -> tuple[list[Task], str | None]:
    """A page, and the cursor of the next: by position, so what comes meanwhile moves nothing.

    Raises ValueError for a cursor that is none.
    """
    if not is_storable(query.agent or ""):
        return [], None
    run = tables.runs.c
    place = tables.place.label("place")
    chosen = sa.select(*tables.runs.c, place).select_from(tables.runs)
    chosen = chosen.order_by(run.created_at.desc(), place.desc())
    if query.agent is not None:
        chosen = chosen.where(run.name == query.agent)
    if query.status is not None:
        chosen = chosen.where(_has(tables, query.status))
    if query.cursor is not None:
        created, before = _position(query.cursor)
        if isinstance(before, int) is not tables.is_file:
            raise ValueError(query.cursor)
        earlier = sa.tuple_(run.created_at, tables.place) < sa.tuple_(
            sa.literal(created), sa.literal(before)
        )
        chosen = chosen.where(earlier)
    with engine.connect() as connection:
        rows = connection.execute(chosen.limit(query.limit + 1)).mappings().all()
    tasks = [task(dict(row)) for row in rows[: query.limit]]
    if len(rows) <= query.limit:
        return tasks, None
    last = rows[query.limit - 1]
    return tasks, _cursor(last["created_at"], last["place"])


def _has(tables: Tables, status: TaskStatus) -> sa.ColumnElement[bool]:
    run = tables.runs.c
    cancelled = run.status == "CANCELLED"
    lost = sa.func.coalesce(run.attributes[LOST].as_boolean(), sa.false())
    outcomes = [outcome.value for outcome in Outcome if status_of(outcome) is status]
    answered = sa.and_(run.status == "SUCCESS", run.attributes[OUTCOME].as_string().in_(outcomes))
    match status:
        case TaskStatus.PENDING | TaskStatus.RUNNING:
            return has_status(run.status, *(n for n, s in LIVE.items() if s is status))
        case TaskStatus.CANCELLED:
            return sa.and_(cancelled, sa.not_(lost))
        case TaskStatus.FAILED:
            return sa.or_(answered, run.status == "ERROR", sa.and_(cancelled, lost))
        case _:
            return answered


def _cursor(created: int, place: int | str) -> str:
    return base64.urlsafe_b64encode(json.dumps([created, place]).encode()).decode()


def _position(cursor: str) -> tuple[int, int | str]:
    """Raises ValueError for what is no cursor of ours."""
    try:
        position = json.loads(base64.urlsafe_b64decode(cursor.encode()))
    except RecursionError as deep:
        raise ValueError(cursor) from deep
    match position:
        case [int(created), str(place)] if _is_moment(created) and "\0" not in place:
            return created, place
        case [int(created), int(place)] if _is_moment(created) and _is_moment(place):
            return created, place
        case _:
            raise ValueError(cursor)


def _is_moment(number: int) -> bool:
    """Whether a database can compare it."""
    return type(number) is int and 0 <= number < 2**63
