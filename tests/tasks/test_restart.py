"""A service that stops in the middle of runs and starts again on the same store."""

import asyncio
import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from app.runs.events import RunHandedOver, RunRecovered, RunStarted
from tests import fakes
from tests.service import served, until
from tests.streams.reading import names_of
from tests.tasks.background import calling, ended, events, post, quick, submit, url_in, view
from watchkeeper import tool_call_key

CALLS = ("look", "nap")


def looks_and_naps(messages: Sequence[BaseMessage]) -> AIMessage:
    """Look, then nap, then answer."""
    done = len(fakes.results_since_question(messages))
    if done < len(CALLS):
        return fakes.asks(CALLS[done], {}, number=done)
    return AIMessage("rested", usage_metadata=fakes.USAGE)


def napped(tools: fakes.ToolDesk, times: int) -> bool:
    """Whether so many naps have begun."""
    return tools.started.count("nap") == times


@pytest.mark.parametrize("kind", [*fakes.KINDS, "own"])
async def test_run_resumes_after_two_restarts(kind: str, tmp_path: Path) -> None:
    """A graph goes on from its last step, an executor begins anew; both count every turn once.

    So does a graph with a checkpointer of its own, from what that one kept.
    """
    tools = fakes.ToolDesk(60.0)
    model = fakes.ScriptedModel(script=looks_and_naps, delay_s=0.2)
    options = {"checkpointer": InMemorySaver()} if kind == "own" else {}
    agent = fakes.build("langgraph" if kind == "own" else kind, model, tools.tools(), **options)
    agents, task_id = {"a": agent}, ""
    for attempt in (1, 2):
        async with served(agents, store_url=url_in(tmp_path)) as desk:
            task_id = task_id or await submit(desk, include_steps=True)
            await until(partial(napped, tools, attempt), 20)
            before = await view(desk, task_id)
        assert [fact.attempt for fact in desk.facts_of(RunHandedOver)] == [attempt]
    tools.seconds = 0.0
    async with served(agents, store_url=url_in(tmp_path)) as desk:
        task = await ended(desk, task_id)
        story = await events(desk, task_id)
        assert desk.facts_of(RunRecovered) == []  # it was requeued, so no process took it over
        [started] = desk.facts_of(RunStarted)
        assert started.attempt == 3
    assert (task["status"], task["attempts"]) == ("completed", 3)
    assert task["started_at"] == before["started_at"]
    result = task["result"]
    assert result["iterations"] == 2
    whole = kind == "agent_executor"
    assert [step["tool"] for step in result["steps"]] == ["look", "nap"]
    assert result["tool_calls"] == 2
    assert tools.started == (["look", "nap"] * 3 if whole else ["look", "nap", "nap", "nap"])
    model_calls = 7 if whole else 3
    assert result["usage"]["input_tokens"] == 10 * model_calls
    assert result["timings"]["llm_s"] >= 0.2 * model_calls
    assert [event.id for event in story] == list(range(1, len(story) + 1))
    assert (names_of(story).count("run"), names_of(story)[-2:]) == (3, ["token", "end"])


async def test_stored_turn_counts_after_a_crash(tmp_path: Path) -> None:
    """A stored turn counts towards the limit even if its process died before emitting it."""
    tools = fakes.ToolDesk(60.0)
    model = fakes.ScriptedModel(script=fakes.never_stops("nap"))
    agents = {"a": fakes.build("create_agent", model, tools.tools())}
    options: dict[str, Any] = {"store_url": url_in(tmp_path), "early_stopping": "force"}
    async with served(agents, **options) as desk:
        task_id = await submit(desk, max_iterations=2)
        await tools.started_calls()
    with sqlite3.connect(tmp_path / "store.sqlite") as store:
        assert store.execute("delete from streams").rowcount
    tools.seconds = 0.0
    async with served(agents, **options) as desk:
        task = await ended(desk, task_id)
        turns = [e.data["iteration"] for e in await events(desk, task_id) if e.name == "iteration"]
    assert (task["status"], task["result"]["iterations"]) == ("iteration_limit", 2)
    assert tools.started == ["nap"] * 3  # the first of them was cut, and made again
    assert turns == [1, 2]


async def test_repeated_call_has_the_same_idempotency_key(tmp_path: Path) -> None:
    """`tool_call_key()` is the same when a call is made again, and another for another call."""
    keys: dict[int, list[str | None]] = {1: [], 2: []}
    release = asyncio.Event()

    @tool
    async def pay(amount: int) -> str:
        """Pay so much."""
        keys[amount].append(tool_call_key())
        await release.wait()
        return "paid"

    def pays_twice(messages: Sequence[BaseMessage]) -> AIMessage:
        if fakes.results_since_question(messages):
            return AIMessage("done", usage_metadata=fakes.USAGE)
        one, two = fakes.asks("pay", {"amount": 1}), fakes.asks("pay", {"amount": 2}, number=1)
        return AIMessage("", tool_calls=[*one.tool_calls, *two.tool_calls])

    model = fakes.ScriptedModel(script=pays_twice)
    agents = {"a": fakes.build("create_agent", model, [pay])}
    async with served(agents, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk)
        await until(lambda: keys[1] and keys[2], 20)
    release.set()
    async with served(agents, store_url=url_in(tmp_path)) as desk:
        assert (await ended(desk, task_id))["status"] == "completed"
    for sent_keys in keys.values():
        assert len(sent_keys) == 2
        assert sent_keys[0] == sent_keys[1]
        assert sent_keys[0]
    assert keys[1] != keys[2]
    assert tool_call_key() is None


@pytest.mark.parametrize("kind", ["create_agent", "langgraph"])
@pytest.mark.parametrize("finished", [0, 1])
async def test_equal_calls_of_a_turn_have_keys_of_their_own(
    kind: str, finished: int, tmp_path: Path
) -> None:
    """Two calls of a turn that are equal, ids included, have two keys, which they keep.

    So they do if one of them had finished when the process stopped.
    """
    keys, paid, release = list[str | None](), list[str | None](), asyncio.Event()

    @tool
    async def pay(amount: int) -> str:
        """Pay so much."""
        keys.append(tool_call_key())
        if len(keys) > finished:
            await release.wait()
        paid.append(tool_call_key())
        return "paid"

    def pays_twice(messages: Sequence[BaseMessage]) -> AIMessage:
        if fakes.results_since_question(messages):
            return AIMessage("done", usage_metadata=fakes.USAGE)
        calls = [fakes.asks("pay", {"amount": 1}).tool_calls[0] for _ in range(2)]
        return AIMessage("", tool_calls=calls)

    agents = {"a": fakes.build(kind, fakes.ScriptedModel(script=pays_twice), [pay])}
    async with served(agents, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk)
        await until(lambda: len(keys) == 2 and len(paid) == finished, 20)
        await asyncio.sleep(0.5 * finished)  # in which the step of the finished call is stored
    release.set()
    async with served(agents, store_url=url_in(tmp_path)) as desk:
        assert (await ended(desk, task_id))["status"] == "completed"
    assert len(set(keys[:2])) == 2
    assert set(paid) == set(keys) == set(keys[:2])


async def test_time_between_attempts_counts(tmp_path: Path) -> None:
    """The time between two attempts counts: an overdue run ends at once when it resumes."""
    tools = fakes.ToolDesk(60.0)
    agents, timeout_s = {"a": calling("nap", tools)}, 60.0
    async with served(agents, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk, timeout=timeout_s)
        await tools.started_calls()
    with sqlite3.connect(tmp_path / "store.sqlite") as store:
        for moment in ("started_at", "deadline_at"):  # a minute passes
            before = f"json_extract(attributes, '$.{moment}') - {timeout_s}"
            store.execute(
                "update workflow_status"
                f" set attributes = json_set(attributes, '$.{moment}', {before})"
            )
    async with served(agents, store_url=url_in(tmp_path)) as desk:
        task = await ended(desk, task_id)
    assert (task["status"], task["error"]["code"]) == ("timeout", "timeout")
    assert task["attempts"] == 2


async def test_retry_of_an_agent_that_is_not_served_is_404(tmp_path: Path) -> None:
    """A run whose agent is no longer served can be read but not retried: 404, nothing is stored."""
    async with served({"old": quick()}, store_url=url_in(tmp_path)) as desk:
        task_id = (await ended(desk, await submit(desk)))["task_id"]
    async with served({"new": quick()}, store_url=url_in(tmp_path)) as desk:
        assert (await view(desk, task_id))["status"] == "completed"
        refused = await desk.client.post(f"/agent/async/{task_id}/retry")
        assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
        assert "agent" in refused.json()["detail"]
        listed: dict[str, Any] = (await desk.client.get("/agent/async")).json()
        assert [task["task_id"] for task in listed["tasks"]] == [task_id]


async def test_retry_uses_the_current_limits(tmp_path: Path) -> None:
    """A run submitted under higher limits is retried within the current ones."""
    async with served({"a": quick()}, store_url=url_in(tmp_path)) as desk:
        ids = [await submit(desk, timeout=timeout_s, max_iterations=9) for timeout_s in (3, 600)]
        for task_id in ids:
            await ended(desk, task_id)
    limits: dict[str, Any] = {"background_timeout_s": 5.0, "max_iterations": 4}
    async with served({"a": quick()}, store_url=url_in(tmp_path), **limits) as desk:
        again = []
        for task_id in ids:
            response = await desk.client.post(f"/agent/async/{task_id}/retry")
            again.append((await desk.client.get(f"/runs/{response.json()['run_id']}")).json())
        assert [run["timeout_s"] for run in again] == [3.0, 5.0]
        assert [run["iteration_limit"] for run in again] == [4, 4]


async def test_runs_endpoint_reads_old_runs_from_the_store(tmp_path: Path) -> None:
    """GET /runs/{id} reads from the store how the run ended and what was asked for."""
    about: dict[str, Any] = {"metadata": {"shop": "7"}, "timeout": 20.0, "max_iterations": 4}
    async with served({"a": quick()}, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk, **about)
        await ended(desk, task_id)
        known = (await desk.client.get(f"/runs/{task_id}")).json()
    async with served({"a": quick()}, store_url=url_in(tmp_path)) as desk:
        response = await desk.client.get(f"/runs/{task_id}")
        body = response.json()
        assert response.headers["x-run-id"] == task_id
        for name in ("metadata", "timeout_s", "iteration_limit", "outcome", "state", "mode"):
            assert body[name] == known[name], name
        assert (body["metadata"], body["timeout_s"]) == ({"shop": "7"}, 20.0)
        assert (body["iterations"], body["tool_calls"]) == (1, 1)


async def test_draining_service_refuses_submissions(tmp_path: Path) -> None:
    """While it drains, submissions and retries get 503 `draining`; reading goes on."""
    async with served({"a": quick()}, store_url=url_in(tmp_path)) as desk:
        task_id = (await ended(desk, await submit(desk)))["task_id"]
        await desk.service.runner.drain(0.0, 0.0)
        retried = await desk.client.post(f"/agent/async/{task_id}/retry")
        for refused in (await post(desk, key="late"), retried):
            assert (refused.status_code, refused.json()["code"]) == (503, "draining")
            assert int(refused.headers["retry-after"]) >= 1
        metrics = (await desk.client.get("/metrics")).text
        assert 'agent_requests_rejected_total{reason="draining"} 2.0' in metrics
        listed = (await desk.client.get("/agent/async")).json()["tasks"]
        assert [task["task_id"] for task in listed] == [task_id]
