"""Readers that leave, or never read: they stop what they should stop, and hold nothing."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from app.runs.events import (
    ModelCallStarted,
    RunFinished,
    RunStarted,
    StreamClosed,
    StreamOpened,
    Token,
)
from app.runs.model import AgentAnswer, Outcome
from app.runs.ports import AgentCall
from tests import fakes, wire
from tests.runs.scripted import ScriptedAgent
from tests.service import Served, served, until
from tests.streams.reading import SOAK, post, stream

pytestmark = pytest.mark.asyncio(loop_scope="module")
kinds = pytest.mark.parametrize("kind", fakes.KINDS)
CONTINUE = "on_disconnect=continue"
WRITE_S = 0.3


async def _pours(call: AgentCall) -> AgentAnswer:
    """Say 50 MB within a second or so."""
    for _ in range(500):
        if call.say is not None:
            call.say(Token("x" * 100_000, 1))
        await asyncio.sleep(0.004)
    return AgentAnswer("poured")


def read_on(reader: socket.socket) -> None:
    """Read until there is nothing more."""
    while reader.recv(65_536):
        pass


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk() -> AsyncIterator[Served]:
    tools = fakes.ToolDesk(seconds=0.4).tools()
    agents: dict[str, Any] = {}
    for kind in fakes.KINDS:
        model = fakes.ScriptedModel(script=fakes.calls_then_answers("nap", turns=2))
        agents[kind] = fakes.build(kind, model, tools)
    async with served(agents, stream_write_s=WRITE_S, max_queued_runs=200) as service:
        service.service.agents = {**service.service.agents, "pours": ScriptedAgent(_pours, "pours")}
        yield service
        await until(lambda: not service.service.runner.in_flight)
        service.books_balance()


@contextmanager
def deaf(desk: Served, request: bytes) -> Any:
    """A reader that asks and never reads."""
    place = urlsplit(desk.url)
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        reader.connect((place.hostname, place.port))
        reader.sendall(request)
        yield reader


def rest(reader: socket.socket) -> int:
    """How many bytes are left to read on a connection that has been given up."""
    got = 0
    try:
        while part := reader.recv(65_536):
            got += len(part)
    except ConnectionResetError:
        pass
    return got


def closed(desk: Served, run_id: str) -> list[str]:
    """Why readers of a run are gone."""
    return [fact.reason for fact in desk.facts_of(StreamClosed) if fact.run_id == run_id]


async def begun(desk: Served, agent: str) -> str:
    """Wait until a run of the agent is read; gives its id."""
    runs = desk.service.runner.in_flight

    def read() -> list[str]:
        opened = {fact.run_id for fact in desk.facts_of(StreamOpened)}
        return [run.id for run in runs.values() if run.agent.name == agent and run.id in opened]

    await until(read)
    return read()[-1]


async def end_of(desk: Served, run_id: str, within_s: float) -> RunFinished:
    """The end of a run, which comes within so long."""
    await until(lambda: [f for f in desk.facts_of(RunFinished) if f.run_id == run_id], within_s)
    return desk.end_of(run_id)


async def metric(desk: Served, name: str, *labels: str) -> float:
    """The sum of the samples of a metric that have these labels."""
    text = (await desk.client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    return sum(float(line.split(" ")[-1]) for line in lines if all(la in line for la in labels))


@kinds
async def test_leaving_cancels(desk: Served, kind: str) -> None:
    """A reader that leaves ends its run within a second, and no model is asked any more."""
    async with wire.connection(desk.url) as (reader, writer):
        writer.write(post(kind))
        await reader.readuntil(b"event: tool_start")
        run_id = await begun(desk, kind)
    assert (await end_of(desk, run_id, 1.0)).outcome is Outcome.DISCONNECTED
    await until(lambda: closed(desk, run_id) == ["left"])
    asked = len(desk.facts_of(ModelCallStarted))
    await asyncio.sleep(0.5)
    assert len(desk.facts_of(ModelCallStarted)) == asked
    assert desk.service.runner.admission.running == 0
    assert await metric(desk, "agent_stream_connections") == 0
    assert await metric(desk, "agent_runs_in_flight") == 0


@kinds
async def test_leaving_lets_it_finish(desk: Served, kind: str) -> None:
    """With `continue` a run finishes although its reader left."""
    async with wire.connection(desk.url) as (reader, writer):
        writer.write(post(kind, CONTINUE))
        await reader.readuntil(b"event: tool_start")
        run_id = await begun(desk, kind)
    assert (await end_of(desk, run_id, 3.0)).outcome is Outcome.COMPLETED
    assert closed(desk, run_id) == ["left"]


async def test_aborts_at_random(desk: Served) -> None:
    """Of readers and callers that leave at random times each run ends once, and nothing is left."""
    chance = random.Random(5)
    before = len(desk.facts)

    async def come_and_go(number: int) -> None:
        agent = fakes.KINDS[number % 3]
        asks = post(agent) if number % 2 else wire.ask(f"/agents/{agent}", question="q")
        async with wire.connection(desk.url) as (_, writer):
            writer.write(asks)
            await asyncio.sleep(chance.random() * 0.7)

    await asyncio.gather(*(come_and_go(number) for number in range(30 * SOAK)))
    await until(lambda: not desk.service.runner.in_flight, 1.0)
    asked = len(desk.facts_of(ModelCallStarted))
    new = desk.facts[before:]
    ended = [fact for fact in new if isinstance(fact, RunFinished)]
    assert {fact.outcome for fact in ended} == {Outcome.DISCONNECTED}
    assert len(ended) >= len([fact for fact in new if isinstance(fact, RunStarted)]) > 15
    await asyncio.sleep(0.5)
    assert len(desk.facts_of(ModelCallStarted)) == asked
    desk.books_balance()
    assert await metric(desk, "agent_stream_connections") == 0


@pytest.mark.parametrize(
    ("query", "outcome"), [("", Outcome.DISCONNECTED), (CONTINUE, Outcome.COMPLETED)]
)
async def test_who_never_reads(
    desk: Served, query: str, outcome: Outcome, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader that never reads is dropped after the write timeout, and the policy applies."""
    before = await metric(desk, "agent_stream_disconnects_total", 'reason="stalled"')
    with deaf(desk, post("pours", query)) as reader:
        run_id = await begun(desk, "pours")
        await until(lambda: closed(desk, run_id) == ["stalled"], WRITE_S + 1.0)
        assert (await end_of(desk, run_id, 10.0)).outcome is outcome
        reader.settimeout(2.0)
        assert await asyncio.to_thread(rest, reader) < 10_000_000  # what the kernel had taken
    assert [line for line in caplog.records if line.levelname == "ERROR"] == []
    assert await metric(desk, "agent_stream_disconnects_total", 'reason="stalled"') == before + 1
    assert await metric(desk, "agent_stream_connections") == 0


async def test_others_are_unharmed(desk: Served) -> None:
    """While readers never read, other runs answer as ever and what is kept is bounded."""
    before = len(desk.facts_of(StreamClosed))
    sockets = [deaf(desk, post("pours", CONTINUE)) for _ in range(5 * SOAK)]
    for each in sockets:
        each.__enter__()
    try:
        events = await stream(desk, "langgraph")
        assert events[-1].data["outcome"] == "completed"
        assert events[-1].data["duration_s"] < 3.0
        for run in desk.service.runner.in_flight.values():
            kept = sum(len(entry.data.get("text", "")) for entry in run.ring.since(0))
            assert kept <= 512_000
        await until(lambda: len(desk.facts_of(StreamClosed)) >= before + 6, 5.0)
    finally:
        for each in sockets:
            each.__exit__(None, None, None)
    await until(lambda: not desk.service.runner.in_flight, 15.0)


async def test_a_deadline_while_the_reader_stalls() -> None:
    """The deadline of a run whose reader stalls is kept."""
    async with served({}, stream_write_s=5.0) as desk:
        desk.service.agents = {"pours": ScriptedAgent(_pours, "pours")}
        with deaf(desk, post("pours", timeout=0.6)):
            run_id = await begun(desk, "pours")
            end = await end_of(desk, run_id, 2.0)
            assert end.outcome is Outcome.TIMEOUT
            assert end.duration_s < 0.6 + 0.25


async def test_the_first_event(desk: Served) -> None:
    """The time to the first event is told of every stream."""
    await stream(desk, "langgraph")
    assert desk.facts_of(StreamClosed)[-1].reason == "completed"
    assert 0 <= desk.facts_of(StreamClosed)[-1].first_event_s < 0.5
    assert await metric(desk, "agent_stream_time_to_first_event_seconds_count") > 0
    assert await metric(desk, "agent_stream_disconnects_total", 'reason="completed"') == 0
