"""What a run holds while it is in flight: its Idempotency-Key, and the thread it continues."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, TypeAlias

from fastapi import Header

from app.api.schemas import RunBody
from app.api.sse import final
from app.runs.errors import InFlight, StoreUnavailable
from app.runs.live import Ended, Run
from app.runs.model import AgentInfo, Outcome
from app.runs.ports import KeyStore, ThreadStore
from app.runs.tasks import Body, fingerprint

# A claim outlives its run's deadline by so much: a process that dies gives nothing back.
_SLACK_S = 5.0
_CLOSE_S = 5.0
_AGAIN_S = 0.5
# So long an answer waits for a store that is slow to take its claims back; the deadline is kept.
_WAIT_S = 1.0
_PAST_DEADLINE_S = 0.15
_REMEMBERED = (Outcome.COMPLETED, Outcome.ITERATION_LIMIT, Outcome.FAILED)

Key: TypeAlias = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Repeats with the same key and body are the same run.",
    ),
]


class Claims:
    """Takes what a run needs to itself before it starts, and settles it when it has ended."""

    def __init__(self, keys: KeyStore | None, threads: ThreadStore) -> None:
        self._keys = keys
        self._threads = threads
        self._settling: dict[str, asyncio.Task[None]] = {}

    async def take(
        self, agent: AgentInfo, body: RunBody, key: str | None, run_id: str
    ) -> Body | None:
        """Claim for a run; what to replay instead, if its key has been answered.

        Raises InFlight, KeyReused, or StoreUnavailable where the store cannot be asked within the
        time that the caller gives.
        """
        timeout_s = body.timeout or agent.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._take(agent, body, key, run_id, timeout_s + _SLACK_S)
        except TimeoutError:
            raise StoreUnavailable from None

    async def _take(
        self, agent: AgentInfo, body: RunBody, key: str | None, run_id: str, lease_s: float
    ) -> Body | None:
        if key is not None:
            if self._keys is None:
                raise StoreUnavailable
            named = _named(agent.name, key)
            known = await self._keys.acquire(named, body.fingerprint(), run_id, lease_s)
            if known is not None:
                return known
        if body.thread_id is not None:
            until = time.monotonic() + lease_s
            try:
                await self._threads.acquire(agent.name, body.thread_id, run_id, lease_s)
            except (InFlight, StoreUnavailable, asyncio.CancelledError) as refused:
                freed = self._later(run_id, self._release(agent.name, key, None, run_id, until))
                if isinstance(refused, InFlight):  # else there is nobody to wait for
                    await asyncio.wait({freed}, timeout=_WAIT_S)
                raise
        return None

    def hold(self, run: Run, key: str | None) -> None:
        """From now on until the run has ended."""
        if key is not None or run.request.thread_id is not None:
            self._later(run.id, self._settle(run, key))

    def _later(self, run_id: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        settling = asyncio.create_task(work, name=f"claims of {run_id}")
        self._settling[run_id] = settling
        settling.add_done_callback(lambda _: self._settling.pop(run_id, None))
        return settling

    async def wait_until_released(self, run: Run) -> None:
        """Wait until nothing is claimed for a run that has ended: its caller may come again.

        A store that is slow or away makes nobody wait past the deadline, or long before it.
        """
        if (settling := self._settling.get(run.id)) is not None:
            remaining_s = run.deadline + _PAST_DEADLINE_S - time.monotonic()
            await asyncio.wait({settling}, timeout=max(0.0, min(_WAIT_S, remaining_s)))

    async def _settle(self, run: Run, key: str | None) -> None:
        """The key first, since a repeat with it must not be made again."""
        ended = await asyncio.shield(run.ended)
        agent, keys, until = run.agent.name, self._keys, run.deadline + _SLACK_S
        if key is not None and keys is not None and _is_remembered(ended):
            named, body = _named(agent, key), final(run, ended)
            await _until_available(lambda: keys.store(named, run.id, body), until)
            key = None
        await self._release(agent, key, run.request.thread_id, run.id, until)

    async def _release(
        self, agent: str, key: str | None, thread_id: str | None, run_id: str, until: float
    ) -> None:
        """Tried until the claims end by themselves."""
        keys = self._keys
        if key is not None and keys is not None:
            named = _named(agent, key)
            await _until_available(lambda: keys.release(named, run_id), until)
        if thread_id is not None:
            await _until_available(lambda: self._threads.release(agent, thread_id, run_id), until)

    async def close(self) -> None:
        """Wait, for a moment, until nothing is left to settle."""
        if self._settling:
            await asyncio.wait(set(self._settling.values()), timeout=_CLOSE_S)


async def _until_available(work: Callable[[], Awaitable[None]], until: float) -> None:
    while time.monotonic() < until:
        try:
            await work()
            return
        except StoreUnavailable:
            await asyncio.sleep(_AGAIN_S)


def _is_remembered(ended: Ended) -> bool:
    """What may be asked again with the same key is not replayed to whoever does."""
    is_retryable = ended.error is not None and ended.error.retryable
    return ended.outcome in _REMEMBERED and not is_retryable


def _named(agent: str, key: str) -> str:
    return fingerprint(agent, key)
