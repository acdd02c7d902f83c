"""A service that gets the agents of one plan after another, and its report on each run."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.agents import registry
from app.runs.model import AgentAnswer, AgentInfo
from app.runs.ports import Agent, AgentCall, StatefulAgent
from tests import fakes
from tests.property.compiler import compiled
from tests.property.ledger import Ledger
from tests.property.plan import Plan
from tests.streams.reading import StreamEvent, in_order, parse
from tests.telemetry.watched import Scrape, Watched, parsed, root_of, watched

# One agent for each way to ask, so that each has samples of its own; one way is taken twice.
WAYS = ("asked", "again", "streamed", "background")
_RUNS = "agent_runs_total"
# The client waits for longer than a run may take: a busy machine is no failure.
_TIMEOUT_S, _LONGER_S = 60.0, 90.0
_SAMPLES = {
    "iterations": "agent_run_iterations_sum",
    "tool_calls": "agent_run_tool_calls_sum",
    "tools": "agent_tool_call_duration_seconds_count",
    "rejected": "agent_tool_rejected_calls_total",
    "limit_hits": "agent_iteration_limit_hits_total",
    "model_calls": "agent_llm_call_duration_seconds_count",
}


class Place:
    """Serves the agent that was put there last, under one name for as long as the service is."""

    def __init__(self, adapt: Callable[[Any], Agent], agent: Any) -> None:
        self._adapt = adapt
        self._agent = adapt(agent)
        self._kept: tuple[Any, ...] = ()

    @property
    def info(self) -> AgentInfo:
        """That of the agent."""
        return self._agent.info

    def use_store(self, *stores: Any) -> None:
        """Where it keeps its steps, and those that follow it theirs."""
        self._kept = stores
        self._keep()

    def put(self, agent: Any) -> None:
        """Serve this one from now on."""
        self._agent = self._adapt(agent)
        self._keep()

    def _keep(self) -> None:
        if self._kept and isinstance(self._agent, StatefulAgent):
            self._agent.use_store(*self._kept)

    async def answer(self, call: AgentCall) -> AgentAnswer:
        """Ask it."""
        return await self._agent.answer(call)


@dataclass(frozen=True)
class Run:
    """All that was reported of one run, and what the far side saw of it."""

    way: str
    status: int
    body: Mapping[str, Any]
    events: Sequence[StreamEvent]
    ledger: Ledger
    line: Mapping[str, Any]
    span: Mapping[str, Any]
    record: Mapping[str, Any]
    spans: Mapping[str, int]
    samples: Mapping[str, float]

    @property
    def counts(self) -> tuple[Any, ...]:
        """What is to be the same however it is asked."""
        names = ("outcome", "limit", "iterations", "tool_calls", "answer")
        return tuple(self.body.get(name) for name in names)


@dataclass
class Stage:
    """The service with its signals, its places, and its samples before the next plan."""

    signals: Watched
    places: Mapping[str, Place]
    samples: Scrape

    async def play(self, plan: Plan) -> list[Run]:
        """Ask the agent of a plan in every way at the same time, each at a pace of its own."""
        ledgers = {way: Ledger(plan.pace + number) for number, way in enumerate(WAYS)}
        for way, ledger in ledgers.items():
            self.places[way].put(compiled(plan, ledger))
        before = self.samples
        payload = {"question": "go", "timeout": _TIMEOUT_S}
        if plan.limit is not None:
            payload["max_iterations"] = plan.limit
        results = await asyncio.gather(*(self._ask(way, payload) for way in WAYS))
        ended = before.total(_RUNS) + len(WAYS)
        while (after := await scraped(self.signals)).total(_RUNS) != ended:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self.samples = after
        await self.signals.flush()
        runs = [
            self._seen(way, ledgers[way], before, after, *hooks)
            for way, hooks in zip(WAYS, results, strict=True)
        ]
        return list(await asyncio.gather(*runs))

    async def _ask(
        self, way: str, asked: dict[str, Any]
    ) -> tuple[int, dict[str, Any], list[StreamEvent]]:
        client, path = self.signals.desk.client, f"/agents/{way}"
        if way == "streamed":
            response = await client.post(f"{path}/stream", json=asked, timeout=_LONGER_S)
            events = parse(response.content)
            in_order(events)
            return events[-1].data.get("status", 200), events[-1].data, events
        if way == "background":
            accepted = await client.post(f"{path}/async", json=asked)
            assert accepted.status_code == 202, accepted.text
            url = f"/agent/async/{accepted.json()['task_id']}"
            task = (await client.get(url, params={"wait": 60}, timeout=_LONGER_S)).json()
            body = task["result"] or task["error"]
            assert body["outcome"] == task["status"], task
            return body.get("status", 200), body, []
        response = await client.post(path, json=asked, timeout=_LONGER_S)
        return response.status_code, response.json(), []

    async def _seen(
        self,
        way: str,
        ledger: Ledger,
        before: Scrape,
        after: Scrape,
        status: int,
        body: dict[str, Any],
        events: list[StreamEvent],
    ) -> Run:
        run_id = body["run_id"]
        line = await self.signals.log.one("run_finished", run_id=run_id)
        spans = await self.signals.trace_of(run_id)
        record = (await self.signals.desk.client.get(f"/runs/{run_id}")).json()
        samples = {
            name: after.total(sample, agent=way) - before.total(sample, agent=way)
            for name, sample in _SAMPLES.items()
        }
        operations = [span.operation for span in spans]
        return Run(
            way,
            status,
            body,
            events,
            ledger,
            line,
            root_of(spans, run_id).attributes,
            record,
            {name: operations.count(name) for name in ("chat", "execute_tool")},
            samples,
        )


async def scraped(signals: Watched) -> Scrape:
    """The samples that are asked for here: to parse all of them would take most of the time."""
    wanted = tuple(f"{name}{{" for name in (_RUNS, *_SAMPLES.values()))
    text = (await signals.desk.client.get("/metrics")).text
    return parsed("".join(line for line in text.splitlines(True) if line.startswith(wanted)))


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Stage]:
    """A service with a place for each mode, and a store in a file."""
    places: dict[str, Place] = {}
    adapt = registry.adapt

    def placed(agent: Any, name: str, served: AgentInfo) -> Place:
        places[name] = Place(lambda other: adapt(other, name, served), agent)
        return places[name]

    blank = fakes.build("langgraph", fakes.ScriptedModel(script=fakes.calls_then_answers("x")), [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "adapt", placed)
        store = f"sqlite:///{folder / 'store.sqlite'}"
        async with watched(dict.fromkeys(WAYS, blank), level="info", store_url=store) as signals:
            yield Stage(signals, places, await scraped(signals))
