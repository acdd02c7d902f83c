"""Faults that the verdict must find, put into a server of the tests by name; none is in `app`."""

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any


def ack_before_store() -> None:
    """A run is accepted first and stored a moment later."""
    from app.runs.tasks import Task, TaskSpec, TaskStatus
    from app.tasks.engine import Engine

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
    import dbos._sys_db as database

    database.current_owner_xid = lambda *_: None

    from app.runs.background import Background

    Background.stop = lambda *_: None  # type: ignore[method-assign]


def no_takeover() -> None:
    """Nobody looks for the runs of dead processes."""
    from app.tasks.supervisor import Supervisor

    Supervisor._take_over = lambda _: None  # type: ignore[method-assign]


def key_race() -> None:
    """Each process looks a key up in its own memory, and then stores."""
    import app.api.tasks as tasks

    seen: dict[tuple[str, str | None], str] = {}

    def new_id(agent: str, key: str | None) -> str:
        return seen.setdefault((agent, key), str(uuid.uuid4()))

    tasks.new_id = new_id


BUGS: dict[str, Callable[[], None]] = {
    plant.__name__: plant for plant in (ack_before_store, no_fence, no_takeover, key_race)
}
