"""Follows a background run over HTTP: its log is in the store, so any process can send it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response

from app.api.deps import Service
from app.api.headers import run_headers
from app.api.sse import EventStream, Piece, event
from app.api.task_schemas import body_of
from app.runs.errors import NotFound, StoreUnavailable
from app.runs.tasks import Task

_STOP_S = 3.0


class TaskStream(EventStream):
    """Sends the events of a background run after an id, up to its `end` or until we shut down.

    Ids count the events from 1 over all attempts. `error` and `end` follow the last event of the
    log; they are rendered from the result, which is stored once.
    """

    def __init__(self, service: Service, task: Task, after: int) -> None:
        super().__init__(
            {"run_id": task.id, "agent": task.agent},
            run_headers(task),
            service.runner.emit,
            service.write_timeout_s,
        )
        self._tasks = service.tasks
        self._task = task
        self._after = after

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the events as they come, then the end."""
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
            # We shut down, or the store is unavailable: the reader can resume at any process.
            yield b"", True
            return
        body = dict(body_of(task))
        names = ["error", "end"] if "code" in body else ["end"]
        last: list[tuple[str, Any]] = [(name, body) for name in names]
        parts = [event(name, data, number + n) for n, (name, data) in enumerate(last, start=1)]
        yield b"".join(parts[max(0, self._after - number) :]), True

    async def _end(self) -> Task:
        """The run with its end; waits a moment for the owner of a cancelled run to report it."""
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
    """The events of a background run; 204 if no more will come, so that browsers stop."""
    task = await find(service, task_id)
    after = int(last_event_id or 0)
    if after and task.status.ended and after >= await _last_id(service, task, after):
        return Response(status_code=204, headers=run_headers(task))
    return TaskStream(service, task, after)


async def _last_id(service: Service, task: Task, after: int) -> int:
    """The id of the `end` of a run that has ended, for a reader that has read up to `after`.

    Raises StoreUnavailable after a moment: `follow` itself would retry until available.
    """
    last_id = 0
    try:
        async with asyncio.timeout(_STOP_S):
            async for entries in service.tasks.follow(task.id, after):
                last_id = entries[-1].id if entries else last_id
    except TimeoutError:
        raise StoreUnavailable from None
    return last_id + (2 if "code" in body_of(task) else 1)
