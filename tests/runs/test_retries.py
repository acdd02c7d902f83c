"""Calls to a store that is unavailable are repeated until it answers, or until a bound."""

import asyncio

import pytest

from app.runs.errors import HandedOver, StoreUnavailable
from app.runs.retries import retry_until_available
from tests.runs import virtual_time
from tests.runs.scripted import loop_time
from tests.waiting import came_true

pytestmark = pytest.mark.virtual_time


class Away:
    """A store that is unavailable for the first calls."""

    def __init__(self, calls: float, error: Exception | None = None) -> None:
        self.calls = 0
        self._away_for = calls
        self._error = error or StoreUnavailable()

    async def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self._away_for:
            raise self._error
        return "here"


async def test_value_of_an_available_store() -> None:
    """The caller gets the value once the store is available."""
    store = Away(3)
    assert await retry_until_available(store) == "here"
    assert store.calls == 4


async def test_attempts() -> None:
    """The last error is raised after so many attempts."""
    store = Away(10)
    with pytest.raises(StoreUnavailable):
        await retry_until_available(store, attempts=2)
    assert store.calls == 2


@pytest.mark.parametrize("timeout_s", [0.0, 0.3, 60.0])
async def test_deadline(timeout_s: float) -> None:
    """No attempt starts past the deadline."""
    store, clock = Away(float("inf")), virtual_time.clock()
    deadline = loop_time() + timeout_s
    with pytest.raises(StoreUnavailable):
        await retry_until_available(store, deadline=deadline, clock=clock)
    assert loop_time() < deadline or timeout_s == 0.0
    assert (store.calls > 90) is (timeout_s == 60.0)
    assert (store.calls == 1) is (timeout_s < 0.35)


async def test_processes_do_not_return_together() -> None:
    """Callers that fail at the same moment call again at different moments."""
    began, moments = loop_time(), list[float]()

    async def call() -> None:
        store = Away(1)

        async def work() -> str:
            moments.append(loop_time() - began)
            return await store()

        await retry_until_available(work)

    await asyncio.gather(*(call() for _ in range(5)))
    assert moments[:5] == [0.0] * 5
    assert len(set(moments[5:])) == 5
    assert all(0.35 <= moment <= 0.66 for moment in moments[5:])


async def test_other_errors() -> None:
    """Another error is raised at once."""
    store = Away(1, HandedOver())
    with pytest.raises(HandedOver):
        await retry_until_available(store)
    assert store.calls == 1


async def test_what_unavailable_is() -> None:
    """The caller may name the errors of an outage."""
    store = Away(1, ConnectionError())
    assert await retry_until_available(store, unavailable=(ConnectionError,)) == "here"


async def test_cancelled() -> None:
    """A task that is cancelled while it waits ends as cancelled."""
    store = Away(float("inf"))
    retrying = asyncio.create_task(retry_until_available(store))
    await came_true(lambda: store.calls > 1, "the call was repeated")
    retrying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await retrying
