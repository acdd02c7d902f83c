"""Serves an agent through the real app, asks it in each mode, and reads every report of the run."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.ecosystem.expected import Expected
from tests.ecosystem.reports import Run, assert_agree
from tests.streams.reading import StreamEvent, parse
from tests.tasks import background
from tests.telemetry.watched import Watched, watched

MODES = ("sync", "stream", "background")
# Without a store a service is up in a tenth of the time.
WITHOUT_STORE = ("sync", "stream")
# Shorter than the time for which the client waits for an answer.
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class _Asking:
    body: Mapping[str, Any]
    headers: dict[str, str]


@dataclass
class Served:
    """A service whose signals are caught, and how to ask it."""

    signals: Watched

    async def ask(
        self, agent: str, mode: str = "sync", question: str = "go", key: str = "", **body: Any
    ) -> Run:
        """Ask an agent once, perhaps with an idempotency key, and read every report of the run."""
        before = await self.signals.scrape()
        asked = _Asking(
            {"question": question, "timeout": TIMEOUT_S, **body},
            {"Idempotency-Key": key} if key else {},
        )
        match mode:
            case "stream":
                status, end, events = await self._streamed(agent, asked)
            case "background":
                status, end, events = await self._in_background(agent, asked)
            case _:
                response = await self._post(f"/agents/{agent}", asked)
                status, end, events = response.status_code, response.json(), []
        run_id = str(end["run_id"])
        line = await self.signals.log.one("run_finished", run_id=run_id)
        spans = await self.signals.trace_of(run_id)
        response = await self.signals.desk.client.get(f"/runs/{run_id}")
        rejected = self.signals.log.of("tool_rejected", run_id=run_id)
        after = await self.signals.scrape()
        return Run(
            mode, agent, status, end, events, line, response.json(), spans, before, after,
            len(rejected),
        )  # fmt: skip

    async def _post(self, path: str, asked: "_Asking") -> httpx.Response:
        client = self.signals.desk.client
        return await client.post(path, json=asked.body, headers=asked.headers)

    async def _streamed(
        self, agent: str, asked: "_Asking"
    ) -> tuple[int, Mapping[str, Any], list[StreamEvent]]:
        response = await self._post(f"/agents/{agent}/stream", asked)
        assert response.status_code == 200, response.text
        events = parse(response.content)
        return int(events[-1].data.get("status", 200)), events[-1].data, events

    async def _in_background(
        self, agent: str, asked: "_Asking"
    ) -> tuple[int, Mapping[str, Any], list[StreamEvent]]:
        response = await self._post(f"/agents/{agent}/async", asked)
        assert response.status_code == 202, response.text
        task_id = response.json()["task_id"]
        task = await background.ended(self.signals.desk, task_id)
        end: dict[str, Any] = task["result"] or task["error"]
        events = await background.events(self.signals.desk, task_id)
        return int(end.get("status", 200)), end, events


@asynccontextmanager
async def serving(
    agents: dict[str, Any], store: Path | None = None, **options: Any
) -> AsyncIterator[Served]:
    """Serve agents by these names; background runs need a folder for the store."""
    if store is not None:
        options["store_url"] = background.url_in(store)
    async with watched(agents, **options) as signals:
        yield Served(signals)
        signals.desk.books_balance()


async def agree_in_all_modes(
    build: Callable[[], Any],
    expected: Expected,
    store: Path,
    modes: tuple[str, ...] = MODES,
    options: Mapping[str, Any] | None = None,
    **body: Any,
) -> list[Run]:
    """Build an agent for each mode and ask all of them at once; every report of each agrees."""
    agents = {mode: build() for mode in modes}
    folder = store if "background" in modes else None
    async with serving(agents, folder, **(options or {})) as service:
        runs = await asyncio.gather(*(service.ask(mode, mode, **body) for mode in modes))
    assert_agree(runs, expected)
    return runs
