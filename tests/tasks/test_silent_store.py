"""A store that stops answering in the middle of a run delays no caller past its deadline."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import psycopg
import pytest
import pytest_asyncio

from app.runs.events import ConversationNotStored, RunFinished
from tests import fakes
from tests.service import Served, served, until
from tests.streams.reading import of, parse
from tests.tasks.background import LONG_S, ON_FILE, calling, url_in

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAPS, MOMENTS, LOOKS = fakes.ToolDesk(6), fakes.ToolDesk(0.5), fakes.ToolDesk()
# A wait for the store lasts this long here: longer than a busy machine takes.
STORE_S = 10.0
# The promise is 0.25 s, on a machine that has nothing else to do.
LATE_S = 3.0
CLAIMS = pytest.mark.parametrize("claims", ["key", "thread", "both"])
MODES = pytest.mark.parametrize("mode", ["", "stream"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.tasks.store.ANSWER_S", STORE_S)
        patch.setattr("app.tasks.store._CALLER_BUSY_MS", STORE_S * 1000)
        yield url_in(tmp_path_factory.mktemp("holds"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(store: str) -> AsyncIterator[Served]:
    agents = {
        "naps": calling("nap", NAPS),
        "moments": calling("nap", MOMENTS),
        "stubborn": calling("stubborn", NAPS),
        "looks": calling("look", LOOKS),
    }
    async with served(agents, store_url=store) as service:
        yield service


@contextmanager
def silent(store: str) -> Iterator[None]:
    """Until the block ends, the store answers no query for a claim or a conversation."""
    if not ON_FILE:
        with psycopg.connect(store) as session:
            session.execute("lock table watchkeeper_keys, watchkeeper_threads")
            yield
        return
    with closing(sqlite3.connect(store.removeprefix("sqlite:///"), isolation_level=None)) as file:
        file.execute("BEGIN EXCLUSIVE")
        yield


async def ask(desk: Served, agent: str, mode: str, claims: str, name: str, **body: Any) -> Any:
    """The finished run or the problem, when it came, and the response itself."""
    body |= {"thread_id": name} if claims != "key" else {}
    headers = {"Idempotency-Key": name} if claims != "thread" else {}
    path = f"/agents/{agent}/{mode}".rstrip("/")
    began = time.monotonic()
    response: httpx.Response = await desk.client.post(
        path, json={"question": "hello", **body}, headers=headers
    )
    took_s = time.monotonic() - began
    streamed = response.headers["content-type"].startswith("text/event-stream")
    events = of(parse(response.content), "end")[0] if streamed else response.json()
    print(f"{path} {claims}: {events.get('code', 'answered')} after {took_s:.2f} s")
    return events, took_s, response


async def ask_again(desk: Served, *asked: str, **body: Any) -> Any:
    """The same, as soon as the former run is given up."""
    end = time.monotonic() + LONG_S
    while (again := await ask(desk, *asked, **body))[2].status_code == 409:
        assert time.monotonic() < end
        await asyncio.sleep(0.1)
    return again


async def has_started(tools: fakes.ToolDesk, before: int) -> None:
    """Whether its tool works."""
    await until(lambda: len(tools.started) > before, LONG_S)


@MODES
@pytest.mark.parametrize(
    ("agent", "claims"), [("naps", "key"), ("stubborn", "thread"), ("naps", "both")]
)
async def test_timeout_leaves_at_the_deadline(
    desk: Served, store: str, agent: str, claims: str, mode: str
) -> None:
    """The 504 leaves at the deadline, and the log has the same time."""
    naps, name = len(NAPS.started), f"late-{agent}-{claims}-{mode}"
    asking = asyncio.create_task(ask(desk, agent, mode, claims, name, timeout=2.5))
    await has_started(NAPS, naps)
    with silent(store):
        body, took_s, _ = await asking
    assert (body["code"], body["status"]) == ("timeout", 504)
    assert 2.4 < took_s < 2.5 + LATE_S
    [end] = [fact for fact in desk.facts_of(RunFinished) if fact.run_id == body["run_id"]]
    assert abs(end.duration_s - took_s) < LATE_S


@MODES
async def test_answer_is_delayed_by_a_second_at_most(desk: Served, store: str, mode: str) -> None:
    """The answer waits a second at most and is replayed when the store is back."""
    naps, name = len(MOMENTS.started), f"answer-{mode}"
    asking = asyncio.create_task(ask(desk, "moments", mode, "key", name))
    await has_started(MOMENTS, naps)
    with silent(store):
        body, took_s, _ = await asking
    assert body["outcome"] == "completed"
    assert took_s < 0.5 + 1.0 + LATE_S
    again, _, response = await ask_again(desk, "moments", mode, "key", name)
    assert again == body
    assert response.headers["idempotent-replay"] == "true"


@MODES
@pytest.mark.parametrize("returns", [True, False])
async def test_answer_that_cannot_be_stored_leaves_at_the_deadline(
    desk: Served, store: str, mode: str, returns: bool
) -> None:
    """The answer leaves in time. Its thread has it later, or a fact reports that it has not."""
    naps, name = len(MOMENTS.started), f"said-{mode}-{returns}"
    asking = asyncio.create_task(ask(desk, "moments", mode, "thread", name, timeout=3.0))
    await has_started(MOMENTS, naps)

    def unstored() -> list[ConversationNotStored]:
        facts = desk.facts_of(ConversationNotStored)
        return [fact for fact in facts if fact.run_id == body["run_id"]]

    with silent(store):
        body, took_s, _ = await asking
        if not returns:
            await until(unstored, LONG_S)
    assert body["outcome"] == "completed"
    assert 2.9 < took_s < 3.0 + LATE_S
    dropping = f"/threads/{name}?agent=moments"
    end = time.monotonic() + LONG_S
    while (dropped := await desk.client.delete(dropping)).status_code == 409:
        assert time.monotonic() < end
        await asyncio.sleep(0.1)
    assert (dropped.status_code, len(unstored())) == ((204, 0) if returns else (404, 1))


@MODES
@CLAIMS
async def test_claim_without_an_answer_is_refused_in_time(
    desk: Served, store: str, claims: str, mode: str
) -> None:
    """Within the deadline the caller learns that nothing started, and may repeat."""
    looked, name = len(LOOKS.started), f"claim-{claims}-{mode}"
    with silent(store):
        body, took_s, _ = await ask(desk, "looks", mode, claims, name, timeout=2.0)
    assert (body["code"], body["status"]) == ("store_unavailable", 503)
    assert took_s < 2.0 + LATE_S
    assert len(LOOKS.started) == looked
    body, _, response = await ask_again(desk, "looks", mode, claims, name, timeout=2.0)
    assert body.get("outcome") == "completed", body
    assert "idempotent-replay" not in response.headers


async def test_slow_claim_counts_towards_the_deadline(desk: Served, store: str) -> None:
    """The deadline counts from the arrival of the request, the claim included."""
    with silent(store):
        asking = asyncio.create_task(ask(desk, "naps", "", "key", "slow", timeout=3.5))
        await asyncio.sleep(2.8)
    body, took_s, _ = await asking
    assert body["code"] == "timeout"
    assert 3.4 < took_s < 3.5 + 2.0  # and not 2.8 s later
