"""The last event, the metrics, the spans and the log line agree on every stream."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from app.runs.model import Outcome
from tests import fakes, wire
from tests.streams.reading import StreamEvent, parse
from tests.telemetry.holding import Holding
from tests.telemetry.test_agreement import _agents, agree
from tests.telemetry.watched import Watched, watched

pytestmark = pytest.mark.asyncio(loop_scope="module")
LIMIT = {"max_iterations": 3}
kinds = pytest.mark.parametrize("kind", fakes.KINDS)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def signals() -> AsyncIterator[Watched]:
    desk = Holding()
    async with watched(_agents(desk), tool_threads=64) as service:
        yield service
        desk.release()
        service.desk.books_balance()


async def streamed(signals: Watched, agent: str, **body: Any) -> tuple[str, list[StreamEvent]]:
    """Ask for a stream and read it to its end; gives the run and its events."""
    path = f"/agents/{agent}/stream"
    response = await signals.desk.client.post(path, json={"question": "q", **body})
    assert response.status_code == 200, response.text
    return response.headers["x-run-id"], parse(response.content)


@kinds
@pytest.mark.parametrize(
    ("name", "body", "outcome", "counts", "error", "phase"),
    [
        ("look", {}, Outcome.COMPLETED, (1, 2), None, None),
        ("endless", LIMIT, Outcome.ITERATION_LIMIT, (3, 6), "iteration_limit", None),
        ("slow", {}, Outcome.TIMEOUT, (0, 0), "timeout", "llm"),
        ("stubborn", {}, Outcome.TIMEOUT, (1, 2), "timeout", "tool"),
        ("model_failed", {}, Outcome.FAILED, (0, 0), "model_failed", None),
    ],
)  # fmt: skip
async def test_signals_agree_on_a_stream(
    signals: Watched,
    kind: str,
    name: str,
    body: dict[str, Any],
    outcome: Outcome,
    counts: tuple[int, int],
    error: str | None,
    phase: str | None,
) -> None:
    """However a streamed run ends, its last event and every signal agree."""
    agent = f"{name}-{kind}"
    asking = asyncio.ensure_future(streamed(signals, agent, **body))
    if phase is not None:
        await signals.desk.times_out(agent, "llm" if phase == "llm" else f"tool:{name}", counts[1])
    run_id, events = await asking
    end = events[-1]
    assert (end.name, end.data["run_id"]) == ("end", run_id)
    assert (end.data["outcome"], end.data["iterations"]) == (outcome, counts[0])
    assert end.data["tool_calls"] == counts[1]
    expected: dict[str, Any] = {"error": error, "phase": phase, "mode": "stream"}
    await agree(signals, agent, run_id, None, outcome, counts, **expected)


@kinds
async def test_signals_agree_on_a_cancelled_stream(signals: Watched, kind: str) -> None:
    """Every signal reports the same of a cancelled stream."""
    agent = f"nap_cancelled-{kind}"
    asking = asyncio.ensure_future(streamed(signals, agent))
    run_id = await signals.held(agent, "tool:nap", 2)
    await signals.desk.client.delete(f"/runs/{run_id}")
    _, events = await asking
    assert [event.data["code"] for event in events[-2:]] == ["cancelled", "cancelled"]
    await agree(signals, agent, run_id, None, Outcome.CANCELLED, (1, 2), mode="stream")


@kinds
async def test_signals_agree_on_a_disconnected_stream(signals: Watched, kind: str) -> None:
    """Every signal reports the same of a stream whose reader disconnected."""
    agent = f"nap_left-{kind}"
    async with wire.connection(signals.desk.url) as (_, writer):
        writer.write(wire.ask(f"/agents/{agent}/stream", question="q"))
        run_id = await signals.held(agent, "tool:nap", 2)
    await signals.desk.not_executing(run_id)
    await agree(signals, agent, run_id, None, Outcome.DISCONNECTED, (1, 2), mode="stream")
    # The response emits the end of its reader, which may be later than that of the run.
    samples = await signals.without("agent_stream_connections")
    assert samples.total("agent_stream_disconnects_total", agent=agent, reason="left") == 1
