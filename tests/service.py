"""A real service on a free loopback port, in the test's own event loop, with a real client."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from app import main
from app.agents import registry
from app.api.deps import Service
from app.api.server import Server, listen
from app.runs.events import (
    Event,
    ModelCallFinished,
    ModelCallStarted,
    RunFinished,
    StreamClosed,
    StreamOpened,
    ToolCallFinished,
    ToolCallStarted,
)
from app.runs.live import Run
from app.settings import Settings
from app.telemetry.pipeline import Pipeline
from tests.waiting import BOUND_S, came_true

# A client without it reads every certificate of the machine, which takes a third of the time that
# a service with one run takes. Here all is on loopback, without TLS.
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@dataclass(repr=False)  # pytest and signal handlers would spell out every fact
class Served:
    """A running service: its client, its parts, its address and every fact it emitted."""

    client: httpx.AsyncClient
    service: Service
    url: str
    facts: list[Event]
    pipeline: Pipeline

    async def ask(self, question: str = "hello", agent: str = "", **body: Any) -> httpx.Response:
        """POST /agent, or /agents/{agent}."""
        path = f"/agents/{agent}" if agent else "/agent"
        return await self.client.post(path, json={"question": question, **body})

    def facts_of(self, kind: type[Event]) -> list[Any]:
        """The facts of one type, in order."""
        return [fact for fact in self.facts if isinstance(fact, kind)]

    def end_of(self, run_id: str) -> RunFinished:
        """The one final fact of a run, its last; every call that it started ended once."""
        readers = (StreamOpened, StreamClosed)  # they may come late, and stay longer
        facts = [f for f in self.facts if f.run_id == run_id and not isinstance(f, readers)]
        started = [f.call_id for f in facts if isinstance(f, ModelCallStarted | ToolCallStarted)]
        ended = [f.call_id for f in facts if isinstance(f, ModelCallFinished | ToolCallFinished)]
        assert sorted(started) == sorted(ended), facts
        assert len(set(started)) == len(started), facts
        final = [fact for fact in facts if isinstance(fact, RunFinished)]
        assert len(final) == 1, facts
        assert facts[-1] is final[0], facts
        return final[0]

    async def emitted(self, kind: type[Event], count: int = 1) -> list[Any]:
        """The facts of one type, once there are so many."""
        await came_true(lambda: len(self.facts_of(kind)) >= count, f"{count} {kind.__name__}")
        return self.facts_of(kind)

    async def finished(self, run_id: str) -> RunFinished:
        """The final fact of a run, once it is emitted."""

        def finals() -> list[RunFinished]:
            return [fact for fact in self.facts_of(RunFinished) if fact.run_id == run_id]

        await came_true(finals, f"the final fact of {run_id}")
        return finals()[0]

    async def executing(self, run_id: str) -> Run:
        """A run, once this process executes it."""
        runner = self.service.runner
        await came_true(lambda: run_id in runner.in_flight, f"{run_id} in flight")
        return runner.in_flight[run_id]

    async def not_executing(self, run_id: str) -> None:
        """Return once this process does not execute a run any more."""
        runner = self.service.runner
        await came_true(lambda: run_id not in runner.in_flight, f"{run_id} out of flight")

    async def run_of(self, agent: str) -> Run:
        """The run of an agent, once one is in flight."""

        def runs() -> list[Run]:
            in_flight = self.service.runner.in_flight.values()
            return [run for run in in_flight if run.agent.name == agent]

        await came_true(runs, f"a run of {agent} in flight")
        return runs()[0]

    async def busy(self, running: int = 1, waiting: int = 0) -> list[Run]:
        """The runs in flight, once so many have a slot and so many wait for one."""
        admission, in_flight = self.service.runner.admission, self.service.runner.in_flight
        await came_true(
            lambda: admission.running >= running and admission.waiting >= waiting,
            f"{running} running and {waiting} waiting runs",
        )
        return list(in_flight.values())

    async def idle(self, timeout_s: float = BOUND_S) -> None:
        """Return once no run is in flight."""
        await came_true(lambda: not self.service.runner.in_flight, "no run in flight", timeout_s)

    async def held(self, agent: str, phase: str, calls: int = 0) -> Run:
        """The run of an agent, once this holds it and so many of its tool calls are open."""
        found: list[Run] = []

        def is_held() -> bool:
            runs = [r for r in self.service.runner.in_flight.values() if not r.stopping]
            found[:] = [r for r in runs if r.agent.name == agent and str(r.phase()) == phase]
            return bool(found) and _open_tools(found[0]) >= calls

        await until(is_held)
        return found[0]

    async def times_out(self, agent: str, phase: str, calls: int = 0) -> str:
        """Let the deadline of a run come as soon as this holds it; gives the run's id.

        How long a run takes until it is held there, only the machine knows.
        """
        run = await self.held(agent, phase, calls)
        run.timers[0]._run()  # what the loop calls when the time is up
        return run.id

    def books_balance(self) -> None:
        """Every known run ended once, and holds nothing any more."""
        for run_id in {fact.run_id for fact in self.facts}:
            self.end_of(run_id)
        runner = self.service.runner
        assert not runner.in_flight
        assert (runner.admission.running, runner.admission.waiting) == (0, 0)


def _open_tools(run: Run) -> int:
    calls = list(run.progress.open.values())
    return len([call for call in calls if isinstance(call.started, ToolCallStarted)])


async def until(condition: Callable[[], object], timeout_s: float = 30.0) -> float:
    """Wait until the claim is true and say how long it took; fails when it takes longer."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, f"not within {timeout_s} s"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


@asynccontextmanager
async def served(agents: dict[str, Any], /, **options: Any) -> AsyncIterator[Served]:
    """Serve ready-made agents with the given settings; ends with the block."""
    options.setdefault("store_url", "none")  # a store costs half a second: ask for it
    log = options.pop("log", None)
    settings = Settings(drain_notice_s=0.0, drain_s=0.0, **options)
    parts = main.assemble(settings, log)
    service = parts.service
    facts: list[Event] = []
    emit_to_sinks = service.runner.emit

    def emit(fact: Event) -> None:
        facts.append(fact)
        emit_to_sinks(fact)

    service.runner.emit = emit
    service.agents = {
        name: registry.adapt(agent, name, settings.served(name)) for name, agent in agents.items()
    }
    asyncio.get_running_loop().set_default_executor(service.threads)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = Server(main.application(parts, []), lambda: asyncio.sleep(0))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    url = f"http://127.0.0.1:{port}"
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient(base_url=url, timeout=30, verify=NO_CERTIFICATES) as client:
            yield Served(client, service, url, facts, parts.pipeline)
    finally:
        server.should_exit = True
        await asyncio.wait({serving}, timeout=60)
        listener.close()
        # Those of the service are closed with it; the loop may serve other tests.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
