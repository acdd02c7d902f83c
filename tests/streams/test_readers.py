"""Readers that disconnect or never read: they stop what they should and hold nothing."""

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import pytest_asyncio
from langchain_core.messages import AIMessage, BaseMessage

from app.api.sse import EventStream, Piece
from app.runs.events import (
    RunFinished,
    RunStarted,
    StreamClosed,
    StreamOpened,
    Token,
)
from app.runs.live import Run
from app.runs.model import AgentAnswer, Outcome
from app.runs.ports import AgentCall
from tests import fakes, wire
from tests.runs.scripted import Script, ScriptedAgent
from tests.service import Served, served, until
from tests.streams.reading import SOAK, deaf, path, post, stream
from tests.waiting import came_true

pytestmark = pytest.mark.asyncio(loop_scope="module")
kinds = pytest.mark.parametrize("kind", fakes.KINDS)
CONTINUE = "on_disconnect=continue"
WRITE_S = 0.3
ABORTS = 500 if SOAK else 50
DEAF = 200 if SOAK else 50
# A second is promised; a shared machine may take longer to wake us.
SOON_S = 6.0
# So many runs at once slow each other: each writes its ten megabytes more slowly.
DRIP_S = 0.25 if SOAK else 0.02


def _pours(parts: int, pause_s: float) -> Script:
    """Say so many times 100 KB, which no buffer takes."""

    async def pour(call: AgentCall) -> AgentAnswer:
        for _ in range(parts):
            if call.on_token is not None:
                call.on_token(Token("x" * 100_000, 1))
            await asyncio.sleep(pause_s)
        return AgentAnswer("poured")

    return pour


@pytest.fixture(scope="module")
def model_calls() -> list[tuple[str, float]]:
    """Each question to a model and its time, recorded by the models."""
    return []


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk(model_calls: list[tuple[str, float]]) -> AsyncIterator[Served]:
    tools = fakes.ToolDesk(seconds=0.4).tools()

    def noting(script: fakes.Script) -> fakes.ScriptedModel:
        def noted(messages: Sequence[BaseMessage]) -> AIMessage:
            (question,) = [str(message.text) for message in messages if message.type == "human"]
            model_calls.append((question, time.monotonic()))
            return script(messages)

        return fakes.ScriptedModel(script=noted)

    agents: dict[str, Any] = {}
    for kind in fakes.KINDS:
        agents[kind] = fakes.build(kind, noting(fakes.calls_then_answers("nap", turns=4)), tools)
        agents[f"long-{kind}"] = fakes.build(kind, noting(fakes.never_stops("nap")), tools)
    options = {"stream_write_s": WRITE_S, "max_running_runs": 300, "max_iterations": 50}
    async with served(agents, **options) as service:
        pours, drips = _pours(500, 0.004), _pours(100, DRIP_S)
        service.service.agents = {
            **service.service.agents,
            "pours": ScriptedAgent(pours, "pours"),
            "drips": ScriptedAgent(drips, "drips"),
        }
        yield service
        await until(lambda: not service.service.runner.in_flight)
        service.books_balance()


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
    """Why readers of a run disconnected."""
    return [fact.reason for fact in desk.facts_of(StreamClosed) if fact.run_id == run_id]


async def closing(desk: Served, run_id: str, timeout_s: float = 30.0) -> list[str]:
    """Why readers of a run disconnected, once one has."""
    await came_true(lambda: closed(desk, run_id), f"a reader of {run_id} left", timeout_s)
    return closed(desk, run_id)


async def begun(desk: Served, agent: str) -> str:
    """Wait until a run of the agent is read; gives its id."""
    runs = desk.service.runner.in_flight

    def read() -> list[str]:
        opened = {fact.run_id for fact in desk.facts_of(StreamOpened)}
        return [run.id for run in runs.values() if run.agent.name == agent and run.id in opened]

    await until(read)
    return read()[-1]


async def end_of(desk: Served, run_id: str, timeout_s: float) -> RunFinished:
    """The end of a run, which comes within so long."""
    await until(lambda: [f for f in desk.facts_of(RunFinished) if f.run_id == run_id], timeout_s)
    return desk.end_of(run_id)


async def metric(desk: Served, name: str, *labels: str) -> float:
    """The sum of the samples of a metric that have these labels."""
    text = (await desk.client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    return sum(float(line.split(" ")[-1]) for line in lines if all(la in line for la in labels))


@kinds
async def test_disconnect_cancels_the_run(
    desk: Served, kind: str, model_calls: list[tuple[str, float]]
) -> None:
    """A reader that disconnects ends its run within a second, and no model is asked any more."""
    async with wire.connection(desk.url) as (reader, writer):
        writer.write(post(f"long-{kind}"))
        await reader.readuntil(b"event: tool_start")
        run_id = await begun(desk, f"long-{kind}")
    assert (await end_of(desk, run_id, SOON_S)).outcome is Outcome.DISCONNECTED
    assert await closing(desk, run_id) == ["left"]
    before = len(model_calls)
    await asyncio.sleep(0.5)  # the tool would have ended by then
    assert len(model_calls) == before
    assert desk.service.runner.admission.running == 0
    assert await metric(desk, "agent_stream_connections") == 0
    assert await metric(desk, "agent_runs_in_flight") == 0


@kinds
async def test_run_with_continue_outlives_its_reader(desk: Served, kind: str) -> None:
    """With `continue` a run finishes although its reader disconnected."""
    async with wire.connection(desk.url) as (reader, writer):
        writer.write(post(kind, CONTINUE))
        await reader.readuntil(b"event: tool_start")
        run_id = await begun(desk, kind)
    assert (await end_of(desk, run_id, 30.0)).outcome is Outcome.COMPLETED
    assert await closing(desk, run_id) == ["left"]


async def test_random_disconnects_leave_nothing(
    desk: Served, model_calls: list[tuple[str, float]]
) -> None:
    """After random disconnects of readers and callers each run ends once, and nothing is left."""
    chance = random.Random(5)
    before = len(desk.facts)
    left_at: dict[str, float] = {}
    at_once = asyncio.Semaphore(50)

    async def come_and_go(number: int) -> None:
        agent, question = f"long-{fakes.KINDS[number % 3]}", f"abort {number}"
        address = path(agent) if number % 2 else f"/agents/{agent}"
        async with at_once, wire.connection(desk.url) as (_, writer):
            writer.write(wire.ask(address, question=question))
            await asyncio.sleep(chance.random() * 0.7)
        left_at[question] = time.monotonic()

    await asyncio.gather(*(come_and_go(number) for number in range(ABORTS)))
    await desk.idle(SOON_S)
    await asyncio.sleep(1.0)
    new = desk.facts[before:]
    started = [fact.run_id for fact in new if isinstance(fact, RunStarted)]
    ended = {fact.run_id: fact.outcome for fact in new if isinstance(fact, RunFinished)}
    assert ABORTS >= len(started) > ABORTS / 2
    assert ended.keys() >= set(started)
    assert set(ended.values()) == {Outcome.DISCONNECTED}
    late = [question for question, at in model_calls if at > left_at.get(question, at) + SOON_S]
    assert late == []
    desk.books_balance()
    assert await metric(desk, "agent_runs_in_flight") == 0
    assert await metric(desk, "agent_stream_connections") == 0


@pytest.mark.parametrize(
    ("query", "outcome"), [("", Outcome.DISCONNECTED), (CONTINUE, Outcome.COMPLETED)]
)
async def test_reader_that_never_reads_is_dropped(
    desk: Served, query: str, outcome: Outcome, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader that never reads is dropped after the write timeout, and the policy applies."""
    before = await metric(desk, "agent_stream_disconnects_total", 'reason="stalled"')
    with deaf(desk.url, post("pours", query)) as reader:
        run_id = await begun(desk, "pours")
        assert await closing(desk, run_id, SOON_S) == ["stalled"]
        assert (await end_of(desk, run_id, 30.0)).outcome is outcome
        reader.settimeout(30.0)
        assert await asyncio.to_thread(rest, reader) < 10_000_000  # what the kernel had taken
    assert [line for line in caplog.records if line.levelname == "ERROR"] == []
    assert await metric(desk, "agent_stream_disconnects_total", 'reason="stalled"') == before + 1
    assert await metric(desk, "agent_stream_connections") == 0


async def test_readers_that_never_read_delay_no_other(desk: Served) -> None:
    """While readers never read, other runs answer as before, and memory is bounded."""
    runner = desk.service.runner

    def drips() -> list[Run]:
        return [run for run in runner.in_flight.values() if run.agent.name == "drips"]

    with ExitStack() as stack:
        for _ in range(DEAF):
            stack.enter_context(deaf(desk.url, post("drips", CONTINUE, timeout=120)))
        await until(lambda: len(drips()) == DEAF, 30.0)
        ids = {run.id for run in drips()}
        events = await stream(desk, "langgraph")
        assert events[-1].data["outcome"] == "completed"
        assert events[-1].data["duration_s"] < 25.0
        for run in drips():
            size = sum(len(entry.data.get("text", "")) for entry in run.ring.since(0))
            assert size <= 512_000
        await until(lambda: all(closed(desk, run_id) for run_id in ids), 60.0)
    await desk.idle(60.0)
    assert [closed(desk, run_id) for run_id in ids] == [["stalled"]] * DEAF
    assert {desk.end_of(run_id).outcome for run_id in ids} == {Outcome.COMPLETED}
    assert await metric(desk, "agent_stream_connections") == 0


async def test_deadline_holds_while_the_reader_stalls() -> None:
    """The deadline of a run holds while its reader stalls."""
    async with served({}, stream_write_s=60.0) as desk:
        desk.service.agents = {"pours": ScriptedAgent(_pours(10_000, 0.004), "pours")}
        with deaf(desk.url, post("pours", timeout=0.6)):
            run_id = await begun(desk, "pours")
            end = await end_of(desk, run_id, SOON_S)
            assert end.outcome is Outcome.TIMEOUT


async def test_time_to_the_first_event_is_reported(desk: Served) -> None:
    """Every stream reports its time to the first event."""
    end = (await stream(desk, "langgraph"))[-1].data
    assert await closing(desk, end["run_id"]) == ["completed"]
    (fact,) = [f for f in desk.facts_of(StreamClosed) if f.run_id == end["run_id"]]
    assert 0 <= fact.first_event_s < end["duration_s"]
    assert await metric(desk, "agent_stream_time_to_first_event_seconds_count") > 0
    assert await metric(desk, "agent_stream_disconnects_total", 'reason="completed"') == 0


class Endless(EventStream):
    """Always has something to send."""

    async def pieces(self) -> AsyncIterator[Piece]:
        """One piece after the other."""
        while True:
            yield b"x", False
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("turns", range(6))
async def test_disconnect_during_a_send_leaves_nothing(turns: int) -> None:
    """Nothing goes on for the reader, in whichever turn of the loop it disconnects."""
    disconnected, sent = asyncio.Event(), 0

    async def send(_: Any) -> None:
        nonlocal sent
        sent += 1
        if sent == 3:
            disconnected.set()
            for _ in range(turns):
                await asyncio.sleep(0)

    async def receive() -> dict[str, Any]:
        await disconnected.wait()
        return {"type": "http.disconnect"}

    await Endless({"run_id": "r", "agent": "a"}, {}, lambda _: None, 5.0)({}, receive, send)
    before = sent
    await asyncio.sleep(0.1)
    assert sent <= before + 1
