"""The locks of a run that cannot start are released."""

import asyncio

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

    def __init__(self) -> None:
        self.held: dict[str, str] = {}

    async def acquire(self, key: str, fingerprint: str, run_id: str, lease_s: float) -> Body | None:
        self.held[key] = run_id
        return None

    async def store(self, key: str, run_id: str, body: Body) -> None:
        raise AssertionError

    async def release(self, key: str, run_id: str) -> None:
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
