"""A background run is stored before it is accepted, and ends as the same run does elsewhere."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from app.tasks.queries import Queries
from app.tasks.store import Store
from app.tasks.tables import Tables
from tests import fakes, faults
from tests.service import Served, served
from tests.tasks.background import calling, ended, events, post, quick, submit, url_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDINGS = ("completed", "iteration_limit", "timeout", "failed", "cancelled")
# What differs from one run to the next.
_OWN = ("run_id", "trace_id", "duration_s", "timings")


def kinds() -> dict[str, Any]:
    """For each kind an agent that answers, one that naps, one whose model fails."""
    agents: dict[str, Any] = {}
    for kind in fakes.KINDS:
        broken = faults.model(error=ConnectionError(faults.SECRET))
        agents[f"{kind}-quick"] = quick(kind)
        agents[f"{kind}-slow"] = calling("nap", fakes.ToolDesk(60), kind)
        agents[f"{kind}-broken"] = fakes.build(kind, broken, fakes.ToolDesk().tools())
    return {name.replace("_", "-"): agent for name, agent in agents.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("submit")
    agents = {**kinds(), "asks": faults.graph_that_asks(keeps_state=False)}
    async with served(
        agents, store_url=url_in(folder), background_timeout_s=120, data_dir=folder
    ) as service:
        yield service


async def test_accepted_run_has_a_location(desk: Served) -> None:
    """202 reports where the run is, that it waits, and when to poll again."""
    response = await post(desk)
    body = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/agent/async/{body['task_id']}"
    assert response.headers["x-run-id"] == body["run_id"] == body["task_id"]
    assert int(response.headers["retry-after"]) >= 1
    assert body["agent"] == "create-agent-quick"
    assert (body["status"], body["result"], body["error"]) == ("pending", None, None)
    assert body["created_at"].endswith("+00:00")
    assert (body["started_at"], body["finished_at"], body["queue_wait_s"]) == (None, None, None)
    at = (await desk.client.get(response.headers["location"])).json()
    assert at["task_id"] == body["task_id"]


async def test_run_is_stored_before_it_is_accepted(
    desk: Served, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After a 202 the run is in the store, committed."""
    url = url_in(tmp_path_factory.getbasetemp() / "submit0")
    store = await asyncio.to_thread(Store, url)
    tables = Tables(is_file=store.is_file)
    for _ in range(20):
        response = await post(desk, agent="langgraph-quick")
        found = asyncio.to_thread(Queries(tables, store.calls).row, response.json()["task_id"])
        assert await found is not None
    await asyncio.to_thread(store.close)


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_result_equals_the_answer_of_post_agent(desk: Served, kind: str) -> None:
    """The result of a background run equals the answer of POST /agent, field for field."""
    agent = f"{kind}-quick".replace("_", "-")
    options = {"include_steps": True, "metadata": {"shop": "7"}}
    waited = (await desk.ask("one", agent, **options)).json()
    task = await ended(desk, await submit(desk, "one", agent, **options))
    result = task["result"]
    assert task["status"] == "completed"
    assert set(result) == set(waited)
    assert result["run_id"] == task["task_id"]
    for step in (*waited["steps"], *result["steps"]):
        assert step.pop("started_s") >= 0
        assert step.pop("duration_s") >= 0
        step.pop("call_id")
    for name in set(waited) - set(_OWN):
        assert result[name] == waited[name], name
    parts = sum(value for name, value in result["timings"].items())
    assert parts == pytest.approx(result["duration_s"], abs=0.01)


@pytest.mark.parametrize("kind", fakes.KINDS)
@pytest.mark.parametrize("ending", ENDINGS)
async def test_every_outcome_of_every_kind(desk: Served, kind: str, ending: str) -> None:
    """A run of any kind ends with each outcome, with a result or with its problem."""
    suffix = {"completed": "quick", "iteration_limit": "quick", "failed": "broken"}
    agent = f"{kind}-{suffix.get(ending, 'slow')}".replace("_", "-")
    body: dict[str, Any] = {"iteration_limit": {"max_iterations": 1}, "timeout": {"timeout": 0.5}}
    task_id = await submit(desk, agent=agent, **body.get(ending, {}))
    if ending == "cancelled":
        stopped = await desk.client.delete(f"/agent/async/{task_id}")
        assert (stopped.status_code, stopped.json()["result"]) == (200, "cancelled")
    task = await ended(desk, task_id)
    assert task["status"] == ending
    assert task["finished_at"] is not None
    if ending in ("completed", "iteration_limit"):
        assert task["error"] is None
        assert task["result"]["outcome"] == ending
        assert task["result"]["iterations"] == 1
        assert (task["attempts"], task["started_at"] is not None) == (1, True)
    else:
        codes = {"timeout": (504, "timeout"), "failed": (500, "model_failed")}
        assert task["result"] is None
        assert task["error"]["outcome"] == ending
        assert task["error"]["run_id"] == task_id
        assert faults.SECRET not in str(task)
        problem = (task["error"]["status"], task["error"]["code"])
        assert problem == codes.get(ending, (503, "cancelled"))


async def test_run_that_asks_for_a_human_fails(desk: Served) -> None:
    """Nobody can answer the run, so it fails; its problem says why."""
    task = await ended(desk, await submit(desk, agent="asks"))
    assert task["status"] == "failed"
    assert (task["error"]["code"], task["error"]["outcome"]) == ("interrupted", "interrupted")


async def test_retry_after_until_a_run_has_ended(desk: Served) -> None:
    """Until a run has ended its answer carries Retry-After; afterwards it does not."""
    task_id = await submit(desk, agent="create-agent-slow")
    path = f"/agent/async/{task_id}"
    early = await desk.client.get(path)
    assert early.headers["x-run-id"] == task_id
    assert int(early.headers["retry-after"]) >= 1
    waited = await desk.client.get(path, params={"wait": 0.3})
    assert waited.json()["status"] in ("pending", "running")
    await desk.client.delete(path)
    late = await desk.client.get(path)
    assert (late.headers["x-run-id"], "retry-after" in late.headers) == (task_id, False)


@pytest.mark.parametrize("wait", ["-1", "61", "soon"])
async def test_invalid_wait_is_refused(desk: Served, wait: str) -> None:
    """A wait is a number of seconds up to a minute."""
    response = await desk.client.get("/agent/async/x", params={"wait": wait})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


async def test_queue_time_is_reported_apart(desk: Served) -> None:
    """The time in the queue is reported apart from that of the run."""
    task_id = await submit(desk, timeout=20)
    task = await ended(desk, task_id)
    assert task["status"] == "completed"
    assert task["queue_wait_s"] > 0
    assert task["result"]["duration_s"] < 20


async def test_timeout_above_the_maximum_is_refused(desk: Served) -> None:
    """A timeout above WATCHKEEPER_BACKGROUND_TIMEOUT_S is refused, naming the limit."""
    response = await post(desk, timeout=121)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert response.json()["errors"] == [
        {"field": "timeout", "message": "must be at most 120 seconds"}
    ]
    assert (await post(desk, timeout=120)).status_code == 202


@pytest.mark.parametrize(
    "path", ["/agent/async/{}", "/agent/async/{}/events", "/runs/{}", "/runs/{}/events"]
)
@pytest.mark.parametrize("name", ["nobody", "%00", "a" * 2000, "%F0%9F%9A%82"])
async def test_unknown_run_is_404(desk: Served, path: str, name: str) -> None:
    """A run that nobody submitted is 404, whatever its name."""
    for method in ("GET", "DELETE") if "events" not in path else ("GET",):
        response = await desk.client.request(method, path.format(name))
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_retry_starts_a_new_run(desk: Served) -> None:
    """A failed run is retried on request, as a new run that points to the old one."""
    old = await ended(desk, await submit(desk, "again", "create-agent-broken", max_iterations=3))
    response = await desk.client.post(f"/agent/async/{old['task_id']}/retry")
    assert response.status_code == 202
    new = await ended(desk, response.json()["task_id"])
    assert new["task_id"] != old["task_id"]
    assert (new["retry_of"], new["status"], new["agent"]) == (
        old["task_id"],
        "failed",
        "create-agent-broken",
    )
    for nobody in ("nobody", "%00"):
        assert (await desk.client.post(f"/agent/async/{nobody}/retry")).status_code == 404


async def test_retry_sent_twice_with_a_key_is_one_run(desk: Served) -> None:
    """A retry that is sent twice with one key is one run."""
    old = await submit(desk, "once")
    await ended(desk, old)
    path, headers = f"/agent/async/{old}/retry", {"Idempotency-Key": "again"}
    first, second = [await desk.client.post(path, headers=headers) for _ in range(2)]
    assert first.json()["task_id"] == second.json()["task_id"] != old
    assert second.headers["idempotent-replay"] == "true"
    task = await ended(desk, first.json()["task_id"])
    assert task["result"]["answer"] == "done: once: order 7 shipped"
    other = await submit(desk, "twice")
    await ended(desk, other)
    refused = await desk.client.post(f"/agent/async/{other}/retry", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (422, "key_reused")


async def test_retry_of_a_run_that_has_not_ended_is_409(desk: Served) -> None:
    """The retry gets 409, and there is no second run."""
    task_id = await submit(desk, agent="create-agent-slow")
    refused = await desk.client.post(f"/agent/async/{task_id}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "in_flight")
    newest = (await desk.client.get("/agent/async", params={"limit": 1})).json()["tasks"]
    assert [task["task_id"] for task in newest] == [task_id]
    await desk.client.delete(f"/agent/async/{task_id}")


async def test_default_timeout_of_background_runs(desk: Served) -> None:
    """It is WATCHKEEPER_BACKGROUND_TIMEOUT_S, not the default of waiting callers."""
    [first, *_] = await events(desk, await submit(desk))
    assert (first.name, first.data["deadline_s"]) == ("run", 120)


async def test_invalid_bodies_are_refused(desk: Served) -> None:
    """A body that POST /agent refuses is refused here, and nothing is stored."""
    before = (await desk.client.get("/agent/async")).json()["tasks"][0]["task_id"]
    for body in (
        {},
        {"question": " "},
        {"question": "x", "more": 1},
        {"question": "x", "timeout": 0},
    ):
        response = await desk.client.post("/agent/async", json=body)
        assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert (
        await desk.client.post("/agents/nobody/async", json={"question": "x"})
    ).status_code == 404
    after = (await desk.client.get("/agent/async")).json()["tasks"][0]["task_id"]
    assert before == after


async def test_runs_endpoint_shows_background_runs(desk: Served) -> None:
    """GET /runs and /runs/{id} show an executing background run and an ended one."""
    task_id = await submit(desk, agent="create-agent-slow")
    await desk.executing(task_id)
    listed = (await desk.client.get("/runs", params={"state": "running"})).json()["runs"]
    [row] = [row for row in listed if row["run_id"] == task_id]
    assert (row["mode"], row["agent"]) == ("background", "create-agent-slow")
    stopped = await desk.client.delete(f"/runs/{task_id}")
    assert stopped.json() == {"run_id": task_id, "result": "cancelled"}
    body = (await desk.client.get(f"/runs/{task_id}")).json()
    assert (body["state"], body["outcome"], body["mode"]) == ("finished", "cancelled", "background")
    assert (await ended(desk, task_id))["status"] == "cancelled"
