"""Processes whose clocks differ agree, because they compare moments of the database."""

import asyncio
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.runs.errors import InFlight
from app.tasks.conversations import ConversationStore
from app.tasks.idempotency import IdempotencyKeyStore
from app.tasks.store import Store
from tests.service import served
from tests.tasks.background import quick, url_in

AHEAD_S = 600.0


def test_store_has_a_clock_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`store.now` is seconds since the epoch, and a wrong clock of the process does not move it."""
    real = time.time()
    store = Store(url_in(tmp_path))
    store.prepare()
    monkeypatch.setattr(time, "time", lambda: real + AHEAD_S)
    with store.calls.connect() as connection:
        now = connection.execute(sa.select(store.now)).scalar_one()
    assert isinstance(now, float)
    assert real - 1 < now < real + AHEAD_S / 2
    store.close()


@pytest.mark.parametrize(("holder_s", "other_s"), [(0.0, AHEAD_S), (-AHEAD_S, 0.0)])
async def test_wrong_clock_ends_no_lease(
    holder_s: float, other_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread and a key stay leased, whether the holder's clock is late or another's early."""
    clock, url = time.time, url_in(tmp_path)
    async with served({"a": quick()}, store_url=url):
        store = await asyncio.to_thread(Store, url)
        threads, keys = ConversationStore(store), IdempotencyKeyStore(store)
        with monkeypatch.context() as holder:
            holder.setattr(time, "time", lambda: clock() + holder_s)
            await threads.acquire("a", "t", "holder", AHEAD_S / 2)
            assert await keys.acquire("k", "same", "holder", AHEAD_S / 2) is None
            await threads.write("a", "t", "holder", "[]")
        with monkeypatch.context() as other:
            other.setattr(time, "time", lambda: clock() + other_s)
            await asyncio.to_thread(threads.purge, AHEAD_S / 2)
            await asyncio.to_thread(keys.purge)
            with pytest.raises(InFlight):
                await threads.acquire("a", "t", "other", AHEAD_S)
            with pytest.raises(InFlight):
                await keys.acquire("k", "same", "other", AHEAD_S)
        await threads.write("a", "t", "holder", "[1]")
        await keys.store("k", "holder", {"answer": "1"})
        assert await threads.read("a", "t") == "[1]"
        assert await keys.acquire("k", "same", "other", AHEAD_S) == {"answer": "1"}
        await threads.release("a", "t", "holder")
        with monkeypatch.context() as other:
            other.setattr(time, "time", lambda: clock() + other_s)
            await asyncio.to_thread(threads.purge, AHEAD_S / 2)
        assert await threads.read("a", "t") == "[1]"
        await asyncio.to_thread(store.close)
