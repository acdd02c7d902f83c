"""Callers that disconnect and operators that cancel: the run stops and reports the cause."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.runs import runner
from app.runs.events import ModelCallFinished, RunFinished, RunStarted, ToolCallFinished
from app.runs.model import CallOutcome, Outcome
from tests import fakes, wire
from tests.service import Served, served, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
kinds = pytest.mark.parametrize("kind", fakes.KINDS)

# Long enough that nothing ends by itself while a test looks.
HELD_S = 60.0
# A second is promised; a shared machine may take longer to wake us.
SOON_S = 10.0
TOOLS = fakes.ToolDesk(seconds=HELD_S)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk() -> AsyncIterator[Served]:
    agents: dict[str, Any] = {}
    for kind in fakes.KINDS:
        for holder in ("nap", "stubborn", "block", "look"):
            model = fakes.ScriptedModel(script=fakes.calls_then_answers(holder))
            agents[f"{holder}-{kind}"] = fakes.build(kind, model, TOOLS.tools())
        slow = fakes.ScriptedModel(script=fakes.calls_then_answers("look"), delay_s=HELD_S)
        agents[f"model-{kind}"] = fakes.build(kind, slow, TOOLS.tools())
    async with served(agents, tool_threads=64) as service:
        yield service
        service.books_balance()
        TOOLS.release()


async def started(desk: Served, agent: str) -> str:
    """Wait until a run of the agent waits for its slow tool or model; returns its id."""
    holder = agent.partition("-")[0]
    phase = "llm" if holder == "model" else f"tool:{holder}"
    runs = desk.service.runner.in_flight

    def held() -> list[str]:
        return [r.id for r in runs.values() if r.agent.name == agent and str(r.phase()) == phase]

    await until(held)
    (run_id,) = held()
    if holder != "model":
        await until(lambda: run_id in TOOLS.runs)  # a task or a thread takes a moment to begin
    return run_id


async def ended(desk: Served, run_id: str) -> RunFinished:
    """Wait until the run is reported as ended, soon."""
    await until(lambda: [f for f in desk.facts_of(RunFinished) if f.run_id == run_id], SOON_S)
    end = desk.end_of(run_id)
    assert run_id not in desk.service.runner.in_flight
    return end


async def leave(desk: Served, agent: str) -> str:
    """Ask over a socket, close it once the run executes; returns the run's id."""
    async with wire.connection(desk.url) as (_, writer):
        writer.write(wire.ask(f"/agents/{agent}", question="q"))
        return await started(desk, agent)


@kinds
@pytest.mark.parametrize("holder", ["nap", "stubborn", "block", "model"])
async def test_disconnect_ends_the_run(desk: Served, kind: str, holder: str) -> None:
    """A caller that closes its socket ends its run within a second, as `disconnected`."""
    end = await ended(desk, await leave(desk, f"{holder}-{kind}"))
    assert (end.outcome, end.code) == (Outcome.DISCONNECTED, "disconnected")
    assert str(end.phase) == ("llm" if holder == "model" else f"tool:{holder}")
    assert end.duration_s < HELD_S / 3
    assert desk.service.runner.admission.running == 0


@kinds
async def test_disconnect_cancels_the_model_call(desk: Served, kind: str) -> None:
    """A disconnect ends the model call too, as cancelled."""
    run_id = await leave(desk, f"model-{kind}")
    await ended(desk, run_id)
    calls = [f for f in desk.facts_of(ModelCallFinished) if f.run_id == run_id]
    assert [call.outcome for call in calls] == [CallOutcome.CANCELLED]


@kinds
async def test_disconnect_cancels_the_tool_call(desk: Served, kind: str) -> None:
    """A disconnect cancels the tool call."""
    before = len(TOOLS.cancelled)
    run_id = await leave(desk, f"nap-{kind}")
    await ended(desk, run_id)
    assert TOOLS.cancelled[before:] == ["nap"]
    calls = [f for f in desk.facts_of(ToolCallFinished) if f.run_id == run_id]
    assert [call.outcome for call in calls] == [CallOutcome.CANCELLED]


async def test_half_closed_connection_is_a_disconnect(desk: Served) -> None:
    """A caller that shuts down its own side has disconnected."""
    async with wire.connection(desk.url) as (_, writer):
        writer.write(wire.ask("/agents/nap-create_agent", question="q"))
        run_id = await started(desk, "nap-create_agent")
        writer.write_eof()
        assert (await ended(desk, run_id)).outcome is Outcome.DISCONNECTED


async def test_disconnect_during_the_request_starts_no_run(desk: Served) -> None:
    """A caller that disconnects in the middle of its request starts no run."""
    before = len(desk.facts)
    async with wire.connection(desk.url) as (_, writer):
        writer.write(wire.request(body=b'{"question"', headers={"content-length": "500"}))
        await writer.drain()
        await asyncio.sleep(0.1)
    assert (await desk.client.get("/health")).status_code == 200
    assert len(desk.facts) == before


async def test_fifty_disconnects_leave_nothing(desk: Served) -> None:
    """Fifty callers that disconnect at random moments leave nothing behind."""

    async def come_and_go(number: int) -> None:
        agent = f"nap-{fakes.KINDS[number % 3]}"
        async with wire.connection(desk.url) as (_, writer):
            writer.write(wire.ask(f"/agents/{agent}", question="q"))
            await asyncio.sleep(number * 0.004)

    await asyncio.gather(*(come_and_go(number) for number in range(50)))
    await desk.idle(SOON_S)
    assert desk.service.runner.admission.running == 0
    desk.books_balance()


async def test_kept_alive_connection_serves_the_next_request(desk: Served) -> None:
    """A connection that is kept open serves one request after another."""
    async with wire.connection(desk.url) as (reader, writer):
        for number in range(3):
            writer.write(wire.ask("/agents/look-create_agent", question=f"q{number}"))
            reply = await wire.read_reply(reader)
            assert reply.json()["answer"].startswith(f"done: q{number}")


async def test_pipelined_request_is_no_disconnect(desk: Served) -> None:
    """A second request sent before the first is answered is not taken for a disconnect."""
    async with wire.connection(desk.url) as (reader, writer):
        for number in range(2):
            writer.write(wire.ask("/agents/look-create_agent", question=f"q{number}"))
        for number in range(2):
            reply = await wire.read_reply(reader)
            assert reply.json()["answer"].startswith(f"done: q{number}")


async def cancelled(desk: Served, agent: str) -> tuple[httpx.Response, httpx.Response]:
    """Ask, cancel once the run executes; returns the caller's answer and the canceller's."""
    asking = asyncio.ensure_future(desk.ask(agent=agent, include_steps=True))
    run_id = await started(desk, agent)
    began = time.monotonic()
    stopped = await desk.client.delete(f"/runs/{run_id}")
    answer = await asking
    assert time.monotonic() - began < SOON_S
    return answer, stopped


@kinds
@pytest.mark.parametrize("holder", ["nap", "model"])
async def test_caller_of_a_cancelled_run_gets_503(
    desk: Served, kind: str, holder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller whose run another call cancels gets a 503 that says so."""
    monkeypatch.setattr(runner, "GRACE_S", SOON_S)  # it stops, on a slow machine too
    answer, stopped = await cancelled(desk, f"{holder}-{kind}")
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (503, "cancelled")
    assert (problem["outcome"], problem["retryable"]) == ("cancelled", False)
    assert problem["phase"] == ("llm" if holder == "model" else f"tool:{holder}")
    assert "retry-after" not in answer.headers
    assert (stopped.status_code, stopped.json()) == (
        200,
        {"run_id": problem["run_id"], "result": "cancelled"},
    )
    assert stopped.headers["x-run-id"] == problem["run_id"]
    end = desk.end_of(problem["run_id"])
    assert (end.outcome, end.code) == (Outcome.CANCELLED, "cancelled")


@kinds
@pytest.mark.parametrize("holder", ["stubborn", "block"])
async def test_cancel_of_work_that_will_not_stop_is_202(
    desk: Served, kind: str, holder: str
) -> None:
    """Cancelling work that will not stop is 202 `still_stopping`, while the caller is free."""
    answer, stopped = await cancelled(desk, f"{holder}-{kind}")
    assert (answer.status_code, answer.json()["code"]) == (503, "cancelled")
    assert (stopped.status_code, stopped.json()["result"]) == (202, "still_stopping")
    assert stopped.headers["x-run-id"] == answer.json()["run_id"]


async def test_second_cancel_does_not_fail(desk: Served) -> None:
    """Of two calls that cancel a run, neither fails, and the run ends once."""
    asking = asyncio.ensure_future(desk.ask(agent="stubborn-create_agent"))
    run_id = await started(desk, "stubborn-create_agent")
    path = f"/runs/{run_id}"
    first, second = await asyncio.gather(desk.client.delete(path), desk.client.delete(path))
    assert {first.json()["result"], second.json()["result"]} == {"still_stopping"}
    assert (await asking).status_code == 503
    assert desk.end_of(run_id).outcome is Outcome.CANCELLED
    third = await desk.client.delete(path)
    assert (third.status_code, third.json()["result"]) == (202, "still_stopping")
    TOOLS.release()
    await until(lambda: desk.service.runner.stuck_tasks == 0)
    last = await desk.client.delete(path)
    assert (last.status_code, last.json()["result"]) == (200, "already_finished")


async def test_cancel_of_an_ended_run_changes_nothing(desk: Served) -> None:
    """Cancelling a run that has ended changes nothing."""
    run = (await desk.ask(agent="look-create_agent")).json()
    stopped = await desk.client.delete(f"/runs/{run['run_id']}")
    assert (stopped.status_code, stopped.json()["result"]) == (200, "already_finished")
    assert desk.end_of(run["run_id"]).outcome is Outcome.COMPLETED


async def test_every_run_ended_once(desk: Served) -> None:
    """Every run that started has ended exactly once, with all of its calls."""
    await desk.idle()
    desk.books_balance()
    assert len(desk.facts_of(RunFinished)) == len(desk.facts_of(RunStarted))
