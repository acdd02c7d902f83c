"""Idempotency-Key on all three POSTs: one key is one run, and another body is refused."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests import fakes, faults
from tests.service import Served, served, until
from tests.streams.reading import names_of, of, parse, text_of
from tests.tasks.background import Held, calling, ended, post, quick, url_in

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAPS = Held()
LOOKS = fakes.ToolDesk()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    agents = {
        "quick": calling("look", LOOKS),
        "other": quick(),
        "slow": calling("nap", NAPS),
        "broken": faults.graph_that_raises(ConnectionError()),
        "asks": faults.graph_that_asks(keeps_state=False),
    }
    store = url_in(tmp_path_factory.mktemp("keys"))
    async with served(agents, store_url=store, max_running_runs=40) as service:
        yield service
        NAPS.release()


@pytest.fixture(autouse=True)
def held() -> None:
    """Naps last until a test lets them end."""
    NAPS.hold()


async def ask(
    desk: Served, mode: str, key: str, agent: str = "quick", **body: Any
) -> httpx.Response:
    """One of the POSTs, with a key."""
    path = {"": f"/agents/{agent}", "stream": f"/agents/{agent}/stream"}[mode]
    payload = {"question": "hello", **body}
    return await desk.client.post(path, json=payload, headers={"Idempotency-Key": key})


def answer(response: httpx.Response, mode: str) -> dict[str, Any]:
    """The finished run or the problem, by whichever way it came."""
    if mode == "stream":
        return of(parse(response.content), "end")[0]
    body: dict[str, Any] = response.json()
    return body


async def test_hundred_posts_with_one_key_are_one_run(desk: Served) -> None:
    """A hundred posts of one key at once: the same 202 for all, one run, one new."""
    looked = len(LOOKS.started)
    replies = await asyncio.gather(*(post(desk, key="hundred") for _ in range(100)))
    assert {reply.status_code for reply in replies} == {202}, {r.text for r in replies}
    [task_id] = {reply.json()["task_id"] for reply in replies}
    assert {reply.headers["location"] for reply in replies} == {f"/agent/async/{task_id}"}
    assert sum("idempotent-replay" not in reply.headers for reply in replies) == 1
    assert (await ended(desk, task_id))["status"] == "completed"
    again = await post(desk, key="hundred")
    assert (again.status_code, again.headers["idempotent-replay"]) == (202, "true")
    assert again.json()["task_id"] == task_id
    assert len(LOOKS.started) == looked + 1


async def test_key_with_another_body_is_422(desk: Served) -> None:
    """Another body gets 422, during the run and afterwards; another agent is another run."""
    first = await post(desk, key="body", agent="slow")
    for _ in range(2):
        other = await post(desk, "something else", key="body", agent="slow")
        assert (other.status_code, other.json()["code"]) == (422, "key_reused")
        NAPS.release()
        await ended(desk, first.json()["task_id"])
    elsewhere = await post(desk, key="body", agent="other")
    assert elsewhere.status_code == 202
    assert elsewhere.json()["task_id"] != first.json()["task_id"]


@pytest.mark.parametrize("mode", ["", "stream"])
@pytest.mark.parametrize("ending", ["completed", "iteration_limit", "failed"])
async def test_stored_answer_is_replayed(desk: Served, mode: str, ending: str) -> None:
    """The stored answer is returned again, and the agent is not asked again."""
    agent = "broken" if ending == "failed" else "quick"
    body = {"max_iterations": 1} if ending == "iteration_limit" else {}
    key = f"replay-{mode}-{ending}"
    first = await ask(desk, mode, key, agent, **body)
    assert answer(first, mode)["outcome"] == ending
    assert "idempotent-replay" not in first.headers
    looked = len(LOOKS.started)
    again = await ask(desk, mode, key, agent, **body)
    assert again.headers["idempotent-replay"] == "true"
    assert again.status_code == first.status_code
    assert answer(again, mode) == answer(first, mode)
    assert again.headers["x-run-id"] == answer(first, mode)["run_id"]
    assert len(LOOKS.started) == looked


async def test_replay_as_a_stream(desk: Served) -> None:
    """A replay is streamed as `run`, the answer as one token, and `end`."""
    await ask(desk, "", "as-stream")
    events = parse((await ask(desk, "stream", "as-stream")).content)
    assert names_of(events) == ["run", "token", "end"]
    assert text_of(events) == of(events, "end")[0]["answer"]


@pytest.mark.parametrize("mode", ["", "stream"])
async def test_key_in_flight_is_409(desk: Served, mode: str) -> None:
    """While a run with that key is in flight: 409, or 422 for another body; then its answer."""
    key, naps = f"flight-{mode}", len(NAPS.started)
    first = asyncio.create_task(ask(desk, mode, key, "slow"))
    await NAPS.started_calls(naps + 1)
    for other in ("", "stream"):
        reply = await ask(desk, other, key, "slow")
        assert (reply.status_code, reply.json()["code"]) == (409, "in_flight")
        assert reply.json()["retryable"] is True
        assert int(reply.headers["retry-after"]) >= 1
        reply = await ask(desk, other, key, "slow", question="another")
        assert (reply.status_code, reply.json()["code"]) == (422, "key_reused")
    NAPS.release()
    done = answer(await first, mode)
    assert answer(await ask(desk, mode, key, "slow"), mode) == done
    assert len(NAPS.started) == naps + 1


async def test_hundred_callers_with_one_key_are_one_run(desk: Served) -> None:
    """A hundred callers with one key: one run starts, the others learn to come again."""
    naps = len(NAPS.started)
    requests = [asyncio.create_task(ask(desk, "", "crowd", "slow")) for _ in range(100)]
    await until(lambda: sum(one.done() for one in requests) == 99, 20)
    NAPS.release()
    replies = await asyncio.gather(*requests)
    assert sorted(r.status_code for r in replies) == [200] + [409] * 99
    assert len(NAPS.started) == naps + 1


@pytest.mark.parametrize("mode", ["", "stream"])
async def test_key_is_free_after_a_timeout(desk: Served, mode: str) -> None:
    """A run that timed out leaves its key free: the next run starts again."""
    body: dict[str, Any] = {"agent": "slow", "timeout": 1.0}
    first = await ask(desk, mode, f"late-{mode}", **body)
    assert answer(first, mode)["outcome"] == "timeout"
    again = await ask(desk, mode, f"late-{mode}", **body)
    assert answer(again, mode)["outcome"] == "timeout"
    assert answer(again, mode)["run_id"] != answer(first, mode)["run_id"]
    assert "idempotent-replay" not in again.headers


@pytest.mark.parametrize("mode", ["", "stream"])
async def test_key_is_free_after_a_disconnect(desk: Served, mode: str) -> None:
    """A run whose caller disconnected leaves its key free."""
    key = f"left-{mode}"
    path = f"/agents/slow/{mode}".rstrip("/")
    impatient = httpx.Timeout(30, read=0.3)
    async with httpx.AsyncClient(base_url=desk.url, timeout=impatient) as client:
        headers = {"Idempotency-Key": key}
        with pytest.raises(httpx.ReadTimeout):
            await client.post(path, json={"question": "hello"}, headers=headers)
    await desk.idle()
    NAPS.release()
    # Until the key is released, a repeat is in flight.
    while (again := await ask(desk, mode, key, "slow")).status_code == 409:
        assert again.json()["code"] == "in_flight"
        await asyncio.sleep(0.05)
    assert answer(again, mode)["outcome"] == "completed"
    assert "idempotent-replay" not in again.headers


async def test_key_is_free_after_a_cancelled_run(desk: Served) -> None:
    """A cancelled run leaves its key free."""
    naps = len(NAPS.started)
    first = asyncio.create_task(ask(desk, "", "stopped", "slow"))
    await NAPS.started_calls(naps + 1)
    [run_id] = desk.service.runner.in_flight
    await desk.client.delete(f"/runs/{run_id}")
    assert (await first).json()["code"] == "cancelled"
    NAPS.release()
    assert (await ask(desk, "", "stopped", "slow")).json()["outcome"] == "completed"


@pytest.mark.parametrize("mode", ["", "stream"])
async def test_key_is_free_after_an_interrupted_run(desk: Served, mode: str) -> None:
    """A run that asked for a human leaves its key free."""
    first, second = [answer(await ask(desk, mode, f"asks-{mode}", "asks"), mode) for _ in range(2)]
    assert (first["outcome"], second["outcome"]) == ("interrupted", "interrupted")
    assert first["run_id"] != second["run_id"]


async def test_key_belongs_to_an_agent(desk: Served) -> None:
    """The same key and body to another agent is another run."""
    first, second = [await ask(desk, "", "two", agent) for agent in ("quick", "other")]
    assert (first.json()["agent"], second.json()["agent"]) == ("quick", "other")
    assert "idempotent-replay" not in second.headers


async def test_key_is_free_after_a_thread_conflict(desk: Served) -> None:
    """A run that did not get its thread leaves its key free."""
    naps = len(NAPS.started)
    first = asyncio.create_task(desk.ask(agent="slow", thread_id="busy"))
    await NAPS.started_calls(naps + 1)
    refused = await ask(desk, "", "thread", "slow", thread_id="busy")
    assert (refused.status_code, refused.json()["code"]) == (409, "in_flight")
    NAPS.release()
    assert (await first).status_code == 200
    again = await ask(desk, "", "thread", "slow", thread_id="busy")
    assert (again.status_code, "idempotent-replay" in again.headers) == (200, False)


async def test_repeat_needs_no_thread(desk: Served) -> None:
    """A repeat in the background is the same run, even while another run holds its thread."""
    first = await post(desk, key="first", agent="slow", thread_id="shared")
    NAPS.release()
    await ended(desk, first.json()["task_id"])
    NAPS.hold()
    second = await post(desk, agent="slow", thread_id="shared")
    assert second.status_code == 202
    again = await post(desk, key="first", agent="slow", thread_id="shared")
    assert (again.status_code, again.headers["idempotent-replay"]) == (202, "true")
    assert again.json()["task_id"] == first.json()["task_id"]
    NAPS.release()
    await ended(desk, second.json()["task_id"])


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_invalid_key_is_refused(desk: Served, key: str) -> None:
    """A key has one to 255 characters."""
    for path in ("/agent", "/agent/stream", "/agent/async"):
        response = await desk.client.post(
            path, json={"question": "hello"}, headers={"Idempotency-Key": key}
        )
        assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
