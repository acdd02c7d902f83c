"""The claims of a run are released if the run does not start."""

import asyncio
import time

import pytest

from app.agents.conversations import InMemory
from app.api.claims import Claims
from app.api.schemas import RunBody
from app.runs.errors import InFlight, StoreUnavailable, WatchkeeperError
from app.runs.tasks import Body
from tests import fakes
from tests.service import served, until


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


class Threads(InMemory):
    """No thread can be claimed: the store refuses, or never answers."""

    def __init__(self, refusal: WatchkeeperError | None) -> None:
        super().__init__()
        self.refusal = refusal

    async def acquire(self, agent: str, thread_id: str, run_id: str, lease_s: float) -> None:
        if self.refusal is None:
            await asyncio.sleep(60)
        else:
            raise self.refusal


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [(InFlight(), InFlight), (StoreUnavailable(), StoreUnavailable), (None, StoreUnavailable)],
)
async def test_key_is_released_if_the_thread_is_not_claimed(
    refusal: WatchkeeperError | None, expected: type[WatchkeeperError]
) -> None:
    """A run that gets its key but not its thread releases the key, whatever the cause."""
    agent = fakes.build("create_agent", fakes.ScriptedModel(script=fakes.never_stops("look")), [])
    async with served({"a": agent}) as desk:
        info = desk.service.agent("a").info
    keys = Keys()
    claims = Claims(keys, Threads(refusal))
    body = RunBody(question="q", thread_id="t", timeout=0.2 if refusal is None else 60)
    began = time.monotonic()
    with pytest.raises(expected):
        await claims.take(info, body, "key", "run")
    assert time.monotonic() - began < 30
    await until(lambda: not keys.held)
