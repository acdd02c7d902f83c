"""Health endpoints: alive, ready, started; and the latency of the smallest answer."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from app.agents.demo import agent as demo
from app.runs.events import RunFinished
from app.runs.model import Outcome
from tests import fakes
from tests.service import Served, served, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def _agents(seconds: float) -> dict[str, Any]:
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("nap"))
    return {"orders": fakes.build("create_agent", model, fakes.ToolDesk(seconds=seconds).tools())}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk() -> AsyncIterator[Served]:
    async with served(_agents(60.0), max_running_runs=1, max_queued_runs=0) as service:
        yield service
        service.books_balance()


@pytest.mark.parametrize("path", ["/health", "/health/live"])
async def test_liveness(desk: Served, path: str) -> None:
    """A living service reports that it is alive."""
    response = await desk.client.get(path)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/health/ready", "/health/startup"])
async def test_readiness(desk: Served, path: str) -> None:
    """A service with its agents is ready, each check by name."""
    response = await desk.client.get(path)
    body = response.json()
    assert (response.status_code, body["status"], body["demo"]) == (200, "ready", False)
    assert {check["state"] for check in body["checks"].values()} == {"ok"}


async def test_full_service_stays_ready(desk: Served) -> None:
    """A service without a free slot is degraded by name, and stays ready and alive."""
    asking = asyncio.ensure_future(desk.ask())
    await desk.busy(running=1)
    assert (await desk.ask()).status_code == 503
    response = await desk.client.get("/health/ready")
    assert (response.status_code, response.json()["status"]) == (200, "ready")
    states = [check["state"] for check in response.json()["checks"].values()]
    assert states.count("degraded") == 1
    for path in ("/health", "/health/live", "/health/startup"):
        assert (await desk.client.get(path)).status_code == 200
    (run_id,) = desk.service.runner.in_flight
    await desk.client.delete(f"/runs/{run_id}")
    assert (await asking).status_code == 503
    body = (await desk.client.get("/health/ready")).json()
    assert {check["state"] for check in body["checks"].values()} == {"ok"}


async def test_readiness_shows_the_demo_model() -> None:
    """Readiness reports that a demo model answers."""
    agent = await asyncio.to_thread(demo.build)  # it reads a file
    async with served({"demo": agent}) as desk:
        assert (await desk.client.get("/health/ready")).json()["demo"] is True


@pytest.mark.parametrize("path", ["/health/ready", "/health/startup"])
async def test_not_ready_while_agents_are_built(path: str) -> None:
    """Until its agents are built a service is alive but not ready."""
    async with served(_agents(0.0)) as desk:
        desk.service.agents = {}
        response = await desk.client.get(path)
        assert (response.status_code, response.json()["status"]) == (503, "not_ready")
        assert "failed" in {check["state"] for check in response.json()["checks"].values()}
        assert (await desk.client.get("/health/live")).status_code == 200


async def test_draining_turns_readiness_red() -> None:
    """A draining service is red while it still accepts, then refuses, and lets runs finish."""
    async with served(_agents(0.6)) as desk:
        early = asyncio.ensure_future(desk.ask())
        await desk.busy(running=1)
        draining = asyncio.ensure_future(desk.service.runner.drain(4.0, 20.0))
        await until(lambda: desk.service.runner.leaving)
        assert (await desk.client.get("/health/ready")).status_code == 503
        assert (await desk.client.get("/health/live")).status_code == 200
        late = asyncio.ensure_future(desk.ask())
        await until(lambda: desk.service.runner.draining)
        refused = await desk.ask()
        problem = refused.json()
        assert (refused.status_code, problem["code"]) == (503, "draining")
        assert (problem["outcome"], problem["retryable"]) == ("rejected", True)
        assert int(refused.headers["retry-after"]) >= 1
        assert (await early).status_code == (await late).status_code == 200
        await draining
        desk.books_balance()


async def test_run_cut_by_the_drain_is_503() -> None:
    """A run that outlives the drain is a 503 `draining` that reports what was done."""
    async with served(_agents(60.0), max_running_runs=1) as desk:
        running = asyncio.ensure_future(desk.ask(include_steps=True))
        runs = desk.service.runner.in_flight
        await until(lambda: [run for run in runs.values() if str(run.phase()) == "tool:nap"])
        queued = asyncio.ensure_future(desk.ask())
        await desk.busy(waiting=1)
        began = time.monotonic()
        await desk.service.runner.drain(0.0, 0.2)
        assert time.monotonic() - began < 20
        for asking, phase in ((running, "tool:nap"), (queued, "queue")):
            problem = (await asking).json()
            assert ((await asking).status_code, problem["code"]) == (503, "draining")
            assert problem["phase"] == phase
            assert "retry-after" in (await asking).headers
        assert (await running).json()["iterations"] == 1
        outcomes = {fact.outcome for fact in desk.facts_of(RunFinished)}
        assert outcomes <= {Outcome.CANCELLED, Outcome.REJECTED}
        desk.books_balance()


async def test_small_answers_are_not_delayed(desk: Served) -> None:
    """An answer leaves at once: 30 on one connection take nowhere near 40 ms each."""
    await desk.client.get("/health")
    took_s = list[float]()
    for _ in range(30):
        began = time.monotonic()
        await desk.client.get("/health")
        took_s.append(time.monotonic() - began)
    assert min(took_s) < 0.03, took_s
