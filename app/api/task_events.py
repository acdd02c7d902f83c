"""Follows a background run over HTTP: its log is on the store, so any process can tell it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response

from app.api.deps import Service
from app.api.headers import about
from app.api.sse import EventStream, Piece, event
from app.api.task_schemas import body_of
from app.runs.errors import NotFound, StoreUnavailable
from app.runs.tasks import Task

_STOP_S = 3.0


class TaskStream(EventStream):
    """Sends the events of a background run after an id, until its `end` or this process leaves.

    Ids count its events from 1 over all attempts. `error` and `end` follow the last one that was
    written; they are told from the result, which is stored once.
    """

    def __init__(self, service: Service, task: Task, after: int) -> None:
        super().__init__(
            {"run_id": task.id, "agent": task.agent},
            about(task),
            service.runner.emit,
            service.write_s,
        )
        self._tasks = service.tasks
        self._task = task
        self._after = after

    async def pieces(self) -> AsyncIterator[Piece]:
        """The events as they come, then the end."""
        number = 0
        async for entries in self._tasks.follow(self._task.id, self._after):
            number = entries[-1].id if entries else number
            new = [entry for entry in entries if entry.id > self._after]
            yield b"".join(event(entry.name, entry.data, entry.id) for entry in new), False
        try:
            task = await self._end()
        except StoreUnavailable:
            task = self._task
        if not task.status.ended:
            # This process leaves, or cannot ask: who resumes, perhaps at another, reads the rest.
            yield b"", True
            return
        body = dict(body_of(task))
        names = ["error", "end"] if "code" in body else ["end"]
        last: list[tuple[str, Any]] = [(name, body) for name in names]
        parts = [event(name, told, number + n) for n, (name, told) in enumerate(last, start=1)]
        yield b"".join(parts[max(0, self._after - number) :]), True

    async def _end(self) -> Task:
        """How it ended; whoever worked a cancelled run has a moment to say what became of it."""
        task = await self._tasks.get(self._task.id) or self._task
        if task.status.ended and task.started_at is not None and task.body is None:
            await self._tasks.wait(task.id, lambda snapshot: snapshot.reported, _STOP_S)
            task = await self._tasks.get(task.id) or task
        return task


async def find(service: Service, task_id: str) -> Task:
    """A stored run. Raises NotFound."""
    task = await service.tasks.get(task_id)
    if task is None:
        raise NotFound
    return task


async def follow(service: Service, task_id: str, last_event_id: str | None) -> Response:
    """The events of a background run; 204 where there will be no more, so that browsers stop."""
    task = await find(service, task_id)
    after = int(last_event_id or 0)
    if after and task.status.ended and after >= await _last_id(service, task, after):
        return Response(status_code=204, headers=about(task))
    return TaskStream(service, task, after)


async def _last_id(service: Service, task: Task, after: int) -> int:
    """The id of the `end` of a run that has ended, as somebody asks who has read so far.

    Raises StoreUnavailable: whoever follows waits for a store that is away, and this caller not.
    """
    written = 0
    try:
        async with asyncio.timeout(_STOP_S):
            async for entries in service.tasks.follow(task.id, after):
                written = entries[-1].id if entries else written
    except TimeoutError:
        raise StoreUnavailable from None
    return written + (2 if "code" in body_of(task) else 1)
