"""A real service on a free loopback port, in the test's own event loop, with a real client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from app import main
from app.agents import registry
from app.api.deps import Service
from app.api.server import Server, listen
from app.runs.events import Event
from app.settings import Settings


@dataclass
class Served:
    """A running service: its client, its parts, its address and every fact it emitted."""

    client: httpx.AsyncClient
    service: Service
    url: str
    facts: list[Event]

    async def ask(self, question: str = "hello", agent: str = "", **body: Any) -> httpx.Response:
        """POST /agent, or /agents/{agent}."""
        path = f"/agents/{agent}" if agent else "/agent"
        return await self.client.post(path, json={"question": question, **body})

    def facts_of(self, kind: type[Event]) -> list[Any]:
        """The facts of one type, in order."""
        return [fact for fact in self.facts if isinstance(fact, kind)]


@asynccontextmanager
async def served(agents: dict[str, Any], **options: Any) -> AsyncIterator[Served]:
    """Serve ready-made agents with the given settings; ends with the block."""
    settings = Settings(drain_notice_s=0.0, drain_s=0.0, **options)
    service = main.assemble(settings)
    facts: list[Event] = []
    tell = service.runner.emit

    def emit(fact: Event) -> None:
        facts.append(fact)
        tell(fact)

    service.runner.emit = emit
    service.agents = {
        name: registry.adapt(agent, name, settings.served(name)) for name, agent in agents.items()
    }
    asyncio.get_running_loop().set_default_executor(service.threads)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = Server(main.application(settings, service, []), lambda: asyncio.sleep(0))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    url = f"http://127.0.0.1:{port}"
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            yield Served(client, service, url, facts)
    finally:
        server.should_exit = True
        await asyncio.wait({serving}, timeout=10)
        listener.close()
