"""Faults that the verdict must find, put into a server of the tests by name; none is in `app`."""

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

import dbos._sys_db as database

from app.api import tasks
from app.runs.background import Background
from app.runs.tasks import Task, TaskSpec, TaskStatus
from app.tasks import transitions
from app.tasks.batches import BatchWriter
from app.tasks.engine import Engine
from app.tasks.recovery import Recovery
from app.tasks.transitions import Claim


def ack_before_store() -> None:
    """A run is accepted first and stored a moment later."""
    store = Engine.submit
    later: set[asyncio.Task[Any]] = set()

    async def submit(self: Engine, spec: TaskSpec) -> tuple[Task, bool]:
        async def afterwards() -> None:
            await asyncio.sleep(0.3)
            await store(self, spec)

        later.add(asyncio.create_task(afterwards()))
        now = time.time()
        return Task(spec.id, spec.agent, TaskStatus.PENDING, 0, now, None, None), True

    Engine.submit = submit  # type: ignore[method-assign]


def no_fence() -> None:
    """A process that lost a run goes on with it."""
    setattr(database, "current_owner_xid", lambda *_: None)  # noqa: B010 - not typed
    transitions.HELD = "select %s, %s"  # steps
    # Ours: whose the run is is asked in the journal's transactions.
    setattr(BatchWriter, "_lost", lambda *_, **__: {})  # noqa: B010 - not typed
    setattr(Claim, "_mine", lambda own: own.tables.runs.c.workflow_uuid == own.task_id)  # noqa: B010
    Background.stop = lambda *_: None  # type: ignore[method-assign]


def no_takeover() -> None:
    """No process looks for the runs of dead processes."""
    setattr(Recovery, "_take_over_of_dead", lambda _: None)  # noqa: B010 - not typed


def key_race() -> None:
    """Each process looks a key up in its own memory, and then stores."""
    seen: dict[tuple[str, str | None], str] = {}

    def new_id(agent: str, key: str | None) -> str:
        return seen.setdefault((agent, key), str(uuid.uuid4()))

    setattr(tasks, "new_id", new_id)  # noqa: B010 - not typed


BUGS: dict[str, Callable[[], None]] = {
    plant.__name__: plant for plant in (ack_before_store, no_fence, no_takeover, key_race)
}
