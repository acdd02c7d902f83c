"""Locks are released, whatever the store does, and no release is without an owner."""

import asyncio
from collections.abc import Sequence

import pytest

from app.agents.conversations import InMemoryThreads
from app.runs.errors import InFlight, StoreUnavailable, WatchkeeperError
from app.runs.live import Ended, Run
from app.runs.locks import RunLocks
from app.runs.model import AgentInfo, RunRequest
from app.runs.tasks import Body
from tests.runs import virtual_time
from tests.runs.scripted import loop_time
from tests.waiting import came_true

pytestmark = pytest.mark.virtual_time


class Keys:
    """Every key is free; it records which run has which."""

    def __init__(self, releases: Sequence[asyncio.Event] = ()) -> None:
        self.held: dict[str, str] = {}
        self.released = 0
        self._releases = list(releases)

    async def acquire(self, key: str, fingerprint: str, run_id: str, lease_s: float) -> Body | None:
        self.held[key] = run_id
        return None

    async def store(self, key: str, run_id: str, body: Body) -> None:
        raise AssertionError

    async def release(self, key: str, run_id: str) -> None:
        if self._releases:
            await self._releases.pop(0).wait()
        self.released += 1
        if self.held.get(key) == run_id:
            del self.held[key]


class Threads(InMemoryThreads):
    """No thread can be claimed: the store refuses, or never answers."""

    def __init__(self, refusal: WatchkeeperError | None) -> None:
        super().__init__()
        self.refusal = refusal

    async def acquire(self, agent: str, thread_id: str, run_id: str, lease_s: float) -> None:
        if self.refusal is None:
            await asyncio.get_running_loop().create_future()
        else:
            raise self.refusal


def never(run: Run, ended: Ended) -> Body:
    """No run ends here, so no body is rendered."""
    raise AssertionError


@pytest.mark.waits
@pytest.mark.parametrize(
    ("refusal", "raised"),
    [(InFlight(), InFlight), (StoreUnavailable(), StoreUnavailable), (None, StoreUnavailable)],
)
async def test_a_refused_thread_releases_the_key(
    refusal: WatchkeeperError | None, raised: type[WatchkeeperError]
) -> None:
    """A caller that acquires a key and then not its thread releases the key, whatever refused."""
    keys = Keys()
    locks = RunLocks(keys, Threads(refusal), never, virtual_time.clock())
    request = RunRequest("q", thread_id="t", timeout_s=0.2 if refusal is None else 60.0)
    began = loop_time()
    with pytest.raises(raised):
        await locks.acquire(AgentInfo(name="a", kind=""), request, "key", "body", "run")
    assert loop_time() - began < 30
    await came_true(lambda: not keys.held, "the key was released")


async def refused(locks: RunLocks, timeout_s: float = 60.0) -> None:
    """A run acquires its key and not its thread, so that it releases the key."""
    request = RunRequest("q", thread_id="t", timeout_s=timeout_s)
    with pytest.raises(InFlight):
        await locks.acquire(AgentInfo(name="a", kind=""), request, "key", "body", "run")


def releasing() -> list[str]:
    """The tasks that release locks."""
    names = [task.get_name() for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith("locks of")]


async def test_every_release_of_one_run_is_awaited() -> None:
    """Repeats of a request have one run id; the end of the service waits for all their releases."""
    first, second = asyncio.Event(), asyncio.Event()
    keys = Keys([first, second])
    locks = RunLocks(keys, Threads(InFlight()), never, virtual_time.clock())
    await refused(locks)
    await refused(locks)
    first.set()
    await came_true(lambda: keys.released == 1, "the first release ended")
    asyncio.get_running_loop().call_later(1.0, second.set)
    await locks.close()
    assert (keys.released, releasing()) == (2, [])


async def test_no_release_outlives_the_service() -> None:
    """A release that the store never answers ends with the service; its lease expires."""
    locks = RunLocks(Keys([asyncio.Event()]), Threads(InFlight()), never, virtual_time.clock())
    await refused(locks)
    await locks.close()
    assert releasing() == []


async def test_release_without_an_answer_ends_with_the_lease() -> None:
    """A release that the store never answers is given up when its lease expires."""
    keys, began = Keys([asyncio.Event()]), loop_time()
    locks = RunLocks(keys, Threads(InFlight()), never, virtual_time.clock())
    await refused(locks, timeout_s=2.0)
    await came_true(lambda: not releasing(), "the release was given up")
    assert loop_time() - began == pytest.approx(7.0, abs=0.5)
