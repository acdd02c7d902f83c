"""A caller that was refused, because the store was slow, leaves no thread and no key in use."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa

from app.runs.errors import InFlight, StoreUnavailable
from app.tasks.conversations import ConversationStore
from app.tasks.idempotency import IdempotencyKeyStore
from app.tasks.store import Store
from tests.service import served
from tests.tasks.background import LONG_S, quick, url_in
from tests.waiting import came_true

LEASE_S = 3600.0


class SlowCommits:
    """The commits of a store for callers last until they are released."""

    def __init__(self, store: Store) -> None:
        self.waits = threading.Event()
        self._released = threading.Event()
        sa.event.listen(store.calls, "commit", self._hold)

    def _hold(self, _: Any) -> None:
        self.waits.set()
        self._released.wait(LONG_S)

    def release(self) -> None:
        self._released.set()


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    url = url_in(tmp_path)
    async with served({"a": quick()}, store_url=url):
        store = await asyncio.to_thread(Store, url)
        yield store
        await asyncio.to_thread(store.close)


async def until_free(acquire: Callable[[], Awaitable[object]]) -> None:
    """Wait until the other run can acquire it."""
    async with asyncio.timeout(LONG_S):
        while True:
            try:
                await acquire()
            except InFlight:
                await asyncio.sleep(0.05)
            else:
                return


@pytest.mark.parametrize("what", ["thread", "key"])
@pytest.mark.parametrize("how", ["times out", "is cancelled"])
async def test_late_commit_leases_nothing(
    what: str, how: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is refused while its lease is committed: another run can acquire it at once."""

    async def acquire(run_id: str) -> None:
        if what == "thread":
            await ConversationStore(store).acquire("a", "t", run_id, LEASE_S)
        else:
            await IdempotencyKeyStore(store).acquire("k", "same", run_id, LEASE_S)

    commits = SlowCommits(store)
    with monkeypatch.context() as patch:
        if how == "times out":
            patch.setattr("app.tasks.store.ANSWER_S", 0.3)
        refused = asyncio.create_task(acquire("refused"))
        await came_true(commits.waits.is_set, "the lease is being committed")
        if how == "is cancelled":
            refused.cancel()
        await asyncio.wait({refused})
    if how == "is cancelled":
        assert refused.cancelled()
    else:
        assert isinstance(refused.exception(), StoreUnavailable)
    commits.release()
    await until_free(lambda: acquire("another"))


@pytest.mark.parametrize("repeated", [False, True])
async def test_late_release_spares_a_repeat(
    repeated: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeat of a refused submission has the same run id, and its lease stays."""
    threads, waiting = ConversationStore(store), asyncio.Event()
    late: list[Callable[[], None]] = []
    loop = asyncio.get_running_loop()

    def hold_back(*arguments: Any) -> None:
        release = ConversationStore._release_late
        late.append(lambda: release(threads, *arguments))
        loop.call_soon_threadsafe(waiting.set)

    monkeypatch.setattr(threads, "_release_late", hold_back)
    commits = SlowCommits(store)
    refused = asyncio.create_task(threads.acquire("a", "t", "same", LEASE_S))
    await came_true(commits.waits.is_set, "the lease is being committed")
    refused.cancel()
    await asyncio.wait({refused})
    commits.release()
    await asyncio.wait_for(waiting.wait(), LONG_S)
    if repeated:
        await threads.acquire("a", "t", "same", LEASE_S)
    await asyncio.to_thread(late[0])
    if repeated:
        with pytest.raises(InFlight):
            await threads.acquire("a", "t", "another", LEASE_S)
    else:
        await threads.acquire("a", "t", "another", LEASE_S)
