"""When an Idempotency-Key is free again: a refused caller may repeat with it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.runs.errors import InFlight
from app.tasks.idempotency import IdempotencyKeyStore
from app.tasks.store import Store
from tests import fakes, faults
from tests.service import Served, served
from tests.streams.reading import names_of, of, parse
from tests.tasks.background import calling, quick, url_in
from tests.tasks.test_keys import answer, ask

MODES = ("", "stream")


async def takes_the_slot(desk: Served, tools: fakes.ToolDesk) -> asyncio.Task[Any]:
    """A run that takes the only slot."""
    naps = len(tools.started)
    holding = asyncio.create_task(desk.ask(agent="slow"))
    await tools.started_calls(naps + 1)
    return holding


@pytest.mark.parametrize("mode", MODES)
async def test_key_is_free_after_a_refusal(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused caller may repeat at once, even with another body, and is then answered.

    However long the store takes to release the key.
    """
    free = IdempotencyKeyStore.release

    async def slowly(self: IdempotencyKeyStore, key: str, run_id: str) -> None:
        await asyncio.sleep(0.3)
        await free(self, key, run_id)

    monkeypatch.setattr(IdempotencyKeyStore, "release", slowly)
    tools = fakes.ToolDesk(60)
    agents = {"quick": quick(), "slow": calling("nap", tools)}
    options: dict[str, Any] = {"max_running_runs": 1, "max_queued_runs": 0}
    async with served(agents, store_url=url_in(tmp_path), **options) as desk:
        holding = await takes_the_slot(desk, tools)
        for question in ("hello", "hello", "something else"):
            refused = await ask(desk, mode, "full", question=question)
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            assert refused.json()["outcome"] == "rejected"
            assert int(refused.headers["retry-after"]) >= 1
        [run_id] = desk.service.runner.in_flight
        await desk.client.delete(f"/runs/{run_id}")
        await holding
        first, again = [await ask(desk, mode, "full") for _ in range(2)]
        assert answer(first, mode)["outcome"] == "completed"
        assert ["idempotent-replay" in response.headers for response in (first, again)] == [
            False,
            True,
        ]
        assert answer(again, mode) == answer(first, mode)


@pytest.mark.parametrize("mode", MODES)
async def test_key_is_free_after_a_timeout_in_the_queue(mode: str, tmp_path: Path) -> None:
    """A deadline that passes in the queue frees the key as any other does."""
    tools = fakes.ToolDesk(60)
    agents = {"quick": quick(), "slow": calling("nap", tools)}
    async with served(agents, store_url=url_in(tmp_path), max_running_runs=1) as desk:
        holding = await takes_the_slot(desk, tools)
        late = [await ask(desk, mode, "late", timeout=1.5) for _ in range(2)]
        assert {answer_of(response)["phase"] for response in late} == {"queue"}
        assert len({response.headers["x-run-id"] for response in late}) == 2
        for run_id in list(desk.service.runner.in_flight):
            await desk.client.delete(f"/runs/{run_id}")
        await holding


def answer_of(response: Any) -> dict[str, Any]:
    """The problem of a run that never began: as a plain answer, whatever was asked for."""
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["outcome"]) == (504, "timeout")
    return body


@pytest.mark.parametrize("mode", MODES)
async def test_key_is_free_after_a_drain(mode: str, tmp_path: Path) -> None:
    """A caller that a draining service refused is answered by the next one."""
    url = url_in(tmp_path)
    async with served({"quick": quick()}, store_url=url) as desk:
        await desk.service.runner.drain(0.0, 0.0)
        refused = await ask(desk, mode, "moved")
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    async with served({"quick": quick()}, store_url=url) as desk:
        response = await ask(desk, mode, "moved")
        assert (response.status_code, "idempotent-replay" in response.headers) == (200, False)


@pytest.mark.parametrize("mode", MODES)
async def test_failure_is_replayed_and_interrupt_is_not(mode: str, tmp_path: Path) -> None:
    """A failure is an answer and is replayed; a question to a human is not."""
    agents = {
        "raises": faults.graph_that_raises(OSError("x")),
        "asks": faults.graph_that_asks(keeps_state=False),
    }
    async with served(agents, store_url=url_in(tmp_path)) as desk:
        for agent, code, replayed in (
            ("raises", "agent_failed", True),
            ("asks", "interrupted", False),
        ):
            first, again = [await ask(desk, mode, agent, agent) for _ in range(2)]
            assert answer(first, mode)["code"] == answer(again, mode)["code"] == code
            assert ("idempotent-replay" in again.headers) is replayed
            assert (answer(first, mode) == answer(again, mode)) is replayed
            if mode == "stream" and replayed:
                events = parse(again.content)
                assert names_of(events) == ["run", "error", "end"]
                assert of(events, "error") == of(events, "end")


def let_time_pass(store: Store) -> None:
    """Have every key taken a minute ago."""
    with store.calls.begin() as connection:
        connection.execute(sa.text("update watchkeeper_keys set held_until = held_until - 60"))


async def test_key_expires_after_its_process_died(tmp_path: Path) -> None:
    """A key that nobody releases expires, and its former holder writes nothing any more."""
    url = url_in(tmp_path)
    async with served({"quick": quick()}, store_url=url):
        store = await asyncio.to_thread(Store, url)
        keys = IdempotencyKeyStore(store)
        assert await keys.acquire("k", "same", "dead", 30) is None
        with pytest.raises(InFlight):
            await keys.acquire("k", "same", "next", 30)
        await asyncio.to_thread(let_time_pass, store)
        assert await keys.acquire("k", "same", "next", 30) is None
        await keys.store("k", "dead", {"answer": "too late"})
        await keys.release("k", "dead")
        with pytest.raises(InFlight):
            await keys.acquire("k", "same", "third", 30)
        await keys.store("k", "next", {"answer": "done"})
        assert await keys.acquire("k", "same", "third", 30) == {"answer": "done"}
        await asyncio.to_thread(store.close)
