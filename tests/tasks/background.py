"""Background runs as their callers use them: submit, wait for the end, read the events."""

import asyncio
import os
import threading
import time
import uuid
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from app.runs.tasks import TaskStatus
from tests import fakes
from tests.parts.postgres import Shared
from tests.service import Served
from tests.streams.reading import StreamEvent, parse

# Nothing is expected to take this long, whatever else the machine does.
LONG_S = 30.0
# Whether stores are files here, or databases of a server.
ON_FILE = os.environ.get("STORE") != "postgres"
ENDED = {status.value for status in TaskStatus if status.ended}


@cache
def url_in(folder: Path) -> str:
    """The store of a directory: a file in it, or with STORE=postgres a database of its own."""
    if Shared.server is not None:
        return Shared.server.fresh(f"store_{uuid.uuid4().hex}")
    return f"sqlite:///{folder / 'store.sqlite'}"


class Held(fakes.ToolDesk):
    """A desk whose slow tools work until the test releases them, however long that takes."""

    def __init__(self) -> None:
        super().__init__(LONG_S * 2)
        self._open = threading.Event()

    def release(self) -> None:
        """Let every tool end that works now, or will."""
        self._open.set()

    def hold(self) -> None:
        """From now on tools block again."""
        self._open.clear()

    async def waited(self) -> None:
        """Return once they are released."""
        await self._hold(self.seconds)

    async def _hold(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._open.is_set() and time.monotonic() < end:  # noqa: ASYNC110 - on any loop
            await asyncio.sleep(0.01)

    def _block(self) -> None:
        self._open.wait(self.seconds)

    def _is_released(self, before: int) -> bool:
        return self._open.is_set()


def quick(kind: str = "create_agent", **options: Any) -> Any:
    """An agent of a kind that looks one order up and answers."""
    script = fakes.calls_then_answers("look", {"order": "7"})
    tools = fakes.ToolDesk().tools()
    return fakes.build(kind, fakes.ScriptedModel(script=script), tools, **options)


def calling(tool: str, desk: fakes.ToolDesk, kind: str = "create_agent", **options: Any) -> Any:
    """An agent of a kind that calls one tool of the desk and answers."""
    model = fakes.ScriptedModel(script=fakes.calls_then_answers(tool))
    return fakes.build(kind, model, desk.tools(), **options)


def napping() -> Any:
    """An agent whose tool sleeps for a minute."""
    return calling("nap", fakes.ToolDesk(60))


def path(agent: str = "") -> str:
    """Where an agent takes background runs."""
    return f"/agents/{agent}/async" if agent else "/agent/async"


async def post(
    desk: Served, question: str = "hello", agent: str = "", key: str | None = None, **body: Any
) -> httpx.Response:
    """Ask for a background run, perhaps with a key."""
    headers = {} if key is None else {"Idempotency-Key": key}
    payload = {"question": question, **body}
    return await desk.client.post(path(agent), json=payload, headers=headers)


async def submit(desk: Served, question: str = "hello", agent: str = "", **body: Any) -> str:
    """Have a background run accepted; its id."""
    response = await post(desk, question, agent, **body)
    assert response.status_code == 202, response.text
    task_id: str = response.json()["task_id"]
    return task_id


async def view(desk: Served, task_id: str, wait_s: float = 0.0) -> dict[str, Any]:
    """The service's view of a background run."""
    response = await desk.client.get(f"/agent/async/{task_id}", params={"wait": wait_s})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def ended(desk: Served, task_id: str) -> dict[str, Any]:
    """Its view once it has ended; fails when that takes very long."""
    task = await view(desk, task_id, LONG_S)
    assert task["status"] in ENDED, task
    return task


async def events(desk: Served, task_id: str, after: int | None = None) -> list[StreamEvent]:
    """Its events after an id, to the end."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    response = await desk.client.get(f"/agent/async/{task_id}/events", headers=headers)
    assert response.status_code == 200, response.text
    return parse(response.content)
