"""Waiting callers share one query of the store, however many they are."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa

from app.runs.errors import StoreUnavailable
from app.runs.tasks import RunSnapshot
from app.tasks.engine import Engine
from app.tasks.polling import RunPoller
from app.tasks.tables import Tables
from tests import fakes
from tests.service import Served, served
from tests.tasks.background import calling, submit, url_in, view

pytestmark = pytest.mark.asyncio(loop_scope="module")
LATER, ENDED = RunSnapshot(False, 2, False), RunSnapshot(True, 3, False)


class FakeStore:
    """Says how runs stand, or that it is away; keeps what it was asked."""

    calls = None

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.snapshots: dict[str, RunSnapshot] = {"a": LATER, "b": LATER}
        self.refuses: Exception | None = None

    async def call(self, work: Any, ids: Any, *rest: Any) -> dict[str, RunSnapshot]:
        self.asked.append(set(ids))
        await asyncio.sleep(0)
        if self.refuses is not None:
            raise self.refuses
        return self.snapshots


def watcher_on_fake_store() -> tuple[FakeStore, Any]:
    store: Any = FakeStore()
    return store, RunPoller(store, Tables(is_file=True))


async def test_one_query_for_all_awaited_runs() -> None:
    """Each look is one query for all awaited runs; without waiting callers there is none."""
    store, watcher = watcher_on_fake_store()
    waits = [watcher.wait(name, lambda s: s.ended, 30) for name in "ab" * 20]
    waiting = asyncio.gather(*waits)
    await asyncio.sleep(0.35)
    store.snapshots = {"a": ENDED, "b": ENDED}
    began = time.monotonic()
    assert await waiting == [ENDED] * 40
    assert time.monotonic() - began < 20
    assert store.asked == [{"a", "b"}] * len(store.asked)
    assert len(store.asked) <= 6
    await asyncio.sleep(0.3)
    queries = len(store.asked)
    await asyncio.sleep(0.3)
    assert len(store.asked) == queries


async def test_wait_ends_at_its_timeout() -> None:
    """A wait that times out returns nothing, and a caller who leaves is removed."""
    _, watcher = watcher_on_fake_store()
    assert await watcher.wait("a", lambda s: s.rows > 2, 0.2) is None
    leaves = asyncio.create_task(watcher.wait("a", lambda s: s.ended, 60))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.wait({leaves})
    assert not watcher._waiters


async def test_unreachable_store_is_raised_to_every_waiter() -> None:
    """Every waiter gets the error, and waiting works again when the store is back."""
    store, watcher = watcher_on_fake_store()
    store.refuses = StoreUnavailable()
    waits = [watcher.wait(name, lambda s: s.ended, 5.0) for name in "ab"]
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(fault) for fault in results] == [StoreUnavailable] * 2
    store.refuses, store.snapshots = None, {"a": ENDED}
    assert await watcher.wait("a", lambda s: s.ended, 5.0) == ENDED


async def test_follower_polls_an_unreachable_store_slowly() -> None:
    """A follower polls now and then, however fast it is refused, and can be stopped at any time."""
    store, watcher = watcher_on_fake_store()
    store.refuses = StoreUnavailable()

    async def follow() -> None:
        async for _ in watcher.follow("a", 3):
            pass

    following = asyncio.create_task(follow())
    await asyncio.sleep(1.2)
    following.cancel()
    await asyncio.wait({following}, timeout=5)
    assert following.cancelled()
    assert 2 <= len(store.asked) <= 4


async def test_closing_answers_waiters_and_later_callers() -> None:
    """Closing gives waiters the last known view or nothing; later callers do not wait."""
    store, watcher = watcher_on_fake_store()
    waits = [watcher.wait(name, lambda s: s.ended, 30.0) for name in "ab"]
    waiting = asyncio.gather(*waits)
    await asyncio.sleep(0.05)
    store.snapshots = {"a": ENDED, "b": LATER}
    await watcher.release_waiters()
    assert await asyncio.wait_for(waiting, 5) == [ENDED, None]
    assert await asyncio.wait_for(watcher.wait("a", lambda s: s.ended, 30.0), 5) is None


async def test_own_fault_reaches_waiters() -> None:
    """A fault of our own reaches the waiters and does not end the watcher."""
    store, watcher = watcher_on_fake_store()
    store.refuses = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await watcher.wait("a", lambda s: s.ended, 5.0)
    store.refuses, store.snapshots = None, {"a": ENDED}
    assert await watcher.wait("a", lambda s: s.ended, 5.0) == ENDED


async def test_deleted_run_ends_the_wait() -> None:
    """A deleted run ends the wait: it has ended."""
    _, watcher = watcher_on_fake_store()
    snapshot = await watcher.wait("c", lambda s: s.ended, 5.0)
    assert snapshot is not None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    agents = {"slow": calling("nap", fakes.ToolDesk(60))}
    async with served(agents, store_url=url_in(tmp_path_factory.mktemp("watch"))) as service:
        yield service


async def test_many_waiters_cost_as_much_as_one(desk: Served) -> None:
    """Forty callers that wait or follow cost the store as much as one."""
    engine = desk.service.engine
    assert isinstance(engine, Engine)
    queries: list[str] = []

    def note(_: Any, __: Any, statement: str, *rest: Any) -> None:
        queries.append(statement)

    task_id = await submit(desk)
    await desk.executing(task_id)
    await view(desk, task_id, 1.0)
    waits: list[asyncio.Task[Any]] = [
        asyncio.create_task(view(desk, task_id, 20)) for _ in range(20)
    ]
    address = f"{desk.url}/agent/async/{task_id}/events"
    waits += [asyncio.create_task(desk.client.get(address)) for _ in range(20)]
    await asyncio.sleep(1.5)
    sa.event.listen(engine._store.calls, "before_cursor_execute", note)
    began = time.monotonic()
    await asyncio.sleep(2.0)
    took_s = time.monotonic() - began
    sa.event.remove(engine._store.calls, "before_cursor_execute", note)
    # Ten a second by the watcher; the supervisor looks too.
    assert len(queries) < 40 * took_s, (len(queries), took_s)
    await desk.client.delete(f"/agent/async/{task_id}")
    began = time.monotonic()
    views = (await asyncio.gather(*waits))[:20]
    assert time.monotonic() - began < 12  # they would wait for some sixteen
    assert {one["status"] for one in views} == {"cancelled"}
