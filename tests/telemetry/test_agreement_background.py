"""The result, the metrics, the spans and the log line agree on every background run."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from app.runs.model import Outcome
from tests import fakes
from tests.otlp import Received
from tests.service import until
from tests.telemetry.holding import Holding
from tests.telemetry.test_agreement import _agents, agree
from tests.telemetry.watched import Scrape, Watched, root_of, watched

pytestmark = pytest.mark.asyncio(loop_scope="module")
LIMIT = {"max_iterations": 3}
kinds = pytest.mark.parametrize("kind", fakes.KINDS)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def signals(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    wanted = ("look", "endless", "slow", "stubborn", "model_failed", "agent_failed", "nap")
    desk = Holding()
    agents = {n: a for n, a in _agents(desk).items() if n.rpartition("-")[0] in wanted}
    store = tmp_path_factory.mktemp("store") / "store.sqlite"
    with pytest.MonkeyPatch.context() as patch:
        # A machine that pauses for two seconds is no unreachable store.
        patch.setattr("app.tasks.store.ANSWER_S", 30.0)
        patch.setattr("app.tasks.store._CALLER_BUSY_MS", 20_000)
        async with watched(agents, tool_threads=64, store_url=f"sqlite:///{store}") as service:
            yield service
            desk.release()
            service.desk.books_balance()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelling caller waits for the work to stop, on the slowest machine too."""
    monkeypatch.setattr("app.runs.runner.GRACE_S", 10.0)
    monkeypatch.setattr("app.api.tasks.STOP_S", 30.0)


async def submitted(signals: Watched, agent: str, **body: Any) -> str:
    """Submit a run to an agent; gives its id."""
    path = f"/agents/{agent}/async"
    response = await signals.desk.client.post(path, json={"question": "q", **body})
    assert response.status_code == 202, response.text
    return str(response.json()["task_id"])


async def ended(signals: Watched, run_id: str) -> dict[str, Any]:
    """The stored run, once it has ended."""
    response = await signals.desk.client.get(f"/agent/async/{run_id}", params={"wait": 20})
    task: dict[str, Any] = response.json()
    assert task["finished_at"], task
    return task


@kinds
@pytest.mark.parametrize(
    ("name", "body", "outcome", "counts", "error", "phase"),
    [
        ("look", {}, Outcome.COMPLETED, (1, 2), None, None),
        ("endless", LIMIT, Outcome.ITERATION_LIMIT, (3, 6), "iteration_limit", None),
        ("slow", {}, Outcome.TIMEOUT, (0, 0), "timeout", "llm"),
        ("stubborn", {}, Outcome.TIMEOUT, (1, 2), "timeout", "tool"),
        ("model_failed", {}, Outcome.FAILED, (0, 0), "model_failed", None),
        ("agent_failed", {}, Outcome.FAILED, None, "agent_failed", None),
    ],
)  # fmt: skip
async def test_signals_agree_on_a_background_run(
    signals: Watched,
    kind: str,
    name: str,
    body: dict[str, Any],
    outcome: Outcome,
    counts: tuple[int, int] | None,
    error: str | None,
    phase: str | None,
) -> None:
    """However a background run ends, the stored result and every signal agree."""
    agent = f"{name}-{kind}"
    run_id = await submitted(signals, agent, **body)
    if phase is not None:
        calls = counts[1] if counts else 0
        await signals.desk.times_out(agent, "llm" if phase == "llm" else f"tool:{name}", calls)
    task = await ended(signals, run_id)
    result = task["result"] or task["error"]
    assert (task["status"], result["outcome"], result["run_id"]) == (outcome, outcome, run_id)
    counts = counts or (result["iterations"], result["tool_calls"])
    assert (result["iterations"], result["tool_calls"]) == counts
    expected: dict[str, Any] = {"error": error, "phase": phase, "mode": "background"}
    await agree(signals, agent, run_id, None, outcome, counts, **expected)
    samples = await signals.scrape()
    attempts = samples.nonzero("agent_task_attempts_total", agent=agent)
    assert attempts == {(outcome.value,): 1.0}


@kinds
async def test_signals_agree_on_a_cancelled_background_run(
    signals: Watched, kind: str, patient: None
) -> None:
    """Every signal reports the same of a cancelled background run."""
    agent = f"nap-{kind}"
    run_id = await submitted(signals, agent)
    await signals.held(agent, "tool:nap", 2)
    stopped = await signals.desk.client.delete(f"/agent/async/{run_id}")
    assert stopped.json() == {"run_id": run_id, "result": "cancelled"}
    assert (await ended(signals, run_id))["status"] == "cancelled"
    await agree(signals, agent, run_id, None, Outcome.CANCELLED, (1, 2), mode="background")


async def spans_of_submission(signals: Watched, trace_id: str) -> list[Received]:
    """The spans of the request that a run is linked to; it may end after the run."""

    def found() -> list[Received]:
        spans = signals.collector.spans
        return [span for span in spans if span.kind == "SERVER" and span.trace_id == trace_id]

    await until(found)
    return found()


async def test_background_run_has_its_own_trace(signals: Watched) -> None:
    """A background run has its own trace, linked to the request that submitted it."""
    run_id = await submitted(signals, "look-create_agent")
    task = await ended(signals, run_id)
    spans = await signals.trace_of(run_id)
    (outer,) = [span for span in spans if span.kind == "CONSUMER"]
    assert outer.name == "run_task look-create_agent"
    assert root_of(spans, run_id).parent_id == outer.span_id
    assert outer.attributes["agent.task.attempt"] == 1
    assert outer.attributes["agent.queue.wait_s"] == pytest.approx(task["queue_wait_s"], abs=0.01)
    assert task["result"]["trace_id"] == outer.trace_id
    (link,) = outer.links
    servers = await spans_of_submission(signals, link)
    assert [span.attributes["http.route"] for span in servers] == ["/agents/{name}/async"]


async def test_retry_is_linked_to_its_own_request(signals: Watched) -> None:
    """A retry is linked to the request that asked for it, not to the first submission."""
    old = await submitted(signals, "look-langgraph")
    await ended(signals, old)
    response = await signals.desk.client.post(f"/agent/async/{old}/retry")
    run_id = response.json()["task_id"]
    await ended(signals, run_id)
    (outer,) = [span for span in await signals.trace_of(run_id) if span.kind == "CONSUMER"]
    (link,) = outer.links
    servers = await spans_of_submission(signals, link)
    assert [s.attributes["http.route"] for s in servers] == ["/agent/async/{task_id}/retry"]


async def test_queue_metrics_are_read_from_the_store(signals: Watched) -> None:
    """Depth and age of queued and executing runs are read from the store."""
    run_id = await submitted(signals, "nap-langgraph")
    await signals.held("nap-langgraph", "tool:nap")
    agent = {"agent": "nap-langgraph"}

    def is_reported(samples: Scrape) -> bool:
        """The store is read now and then, and what it says together."""
        return (
            samples.total("agent_tasks_running", **agent) == 1
            and samples.total("agent_tasks_queued", **agent) == 0
            and samples.total("agent_task_oldest_age_seconds", **agent) > 0
            and samples.total("agent_ready", check="store") == 1
        )

    samples = await signals.until(is_reported)
    assert samples.total("agent_run_oldest_age_seconds", **agent) == 0
    await signals.desk.times_out("nap-langgraph", "tool:nap")
    await ended(signals, run_id)


async def test_traceresponse(signals: Watched, patient: None) -> None:
    """Every response about a background run names a trace: its submission's, then its own."""
    client = signals.desk.client
    accepted = await client.post("/agents/nap-langgraph/async", json={"question": "q"})
    run_id = accepted.json()["task_id"]
    path = f"/agent/async/{run_id}"
    submitted = tuple(accepted.headers["traceresponse"].split("-")[1:3])
    await signals.held("nap-langgraph", "tool:nap")
    # Its own trace is stored with its first event, a moment after its start.
    async with asyncio.timeout(30):
        first = await client.get(path)
        while first.headers["traceresponse"] == accepted.headers["traceresponse"]:
            await asyncio.sleep(0.02)
            first = await client.get(path)
    responses = [first, await client.get(f"/runs/{run_id}")]
    responses += [await client.delete(path), await client.get(f"{path}/events")]
    responses += [await client.get(path), await client.delete(f"/runs/{run_id}")]
    last = {"Last-Event-ID": "999"}
    responses += [await client.get(f"{path}/events", headers=last)]
    assert [response.status_code for response in responses] == [200] * 6 + [204]
    headers = {response.headers["traceresponse"] for response in responses}
    own = root_of(await signals.trace_of(run_id), run_id)
    (server,) = await spans_of_submission(signals, submitted[0])
    assert (server.trace_id, server.span_id) == submitted
    assert headers == {f"00-{own.trace_id}-{own.span_id}-01"}
