"""The locks of a run in flight: on its Idempotency-Key and on its conversation (`thread_id`)."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TypeAlias

from app.runs.clock import SYSTEM, Clock
from app.runs.errors import InFlight, StoreUnavailable
from app.runs.live import Ended, Run
from app.runs.model import AgentInfo, Outcome, RunRequest
from app.runs.ports import KeyStore, ThreadStore
from app.runs.retries import retry_until_available
from app.runs.tasks import Body, fingerprint

# A lease ends this long after the deadline, so the locks of a process that dies expire.
_SLACK_S = 5.0
_CLOSE_S = 5.0
_CANCEL_S = 0.5
# A store answers within this time, or does not at all.
_FIRST_S = 3.0
# An answer waits at most this long for a slow release, and at most this long past the deadline.
_WAIT_S = 1.0
_PAST_DEADLINE_S = 0.15
# The outcomes that are replayed to a repeat with the same key.
_REMEMBERED = (Outcome.COMPLETED, Outcome.ITERATION_LIMIT, Outcome.FAILED)

# Renders the body that callers read once the run has ended.
Render: TypeAlias = Callable[[Run, Ended], Body]


class RunLocks:
    """Acquires the locks of a run before it starts, and releases them after it has ended."""

    def __init__(
        self,
        keys: KeyStore | None,
        threads: ThreadStore,
        render: Render,
        clock: Clock = SYSTEM,
    ) -> None:
        self._keys = keys
        self._threads = threads
        self._render = render
        self._clock = clock
        # By run; repeats of one request may have one run id.
        self._releasing: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)

    async def acquire(
        self,
        agent: AgentInfo,
        request: RunRequest,
        key: str | None,
        body_fingerprint: str,
        run_id: str,
    ) -> Body | None:
        """Acquire the locks of a run. Return the body to replay if a run with its key has ended.

        Raises InFlight, KeyReused, or StoreUnavailable if the store does not answer within the
        timeout of the request.
        """
        try:
            async with asyncio.timeout(request.timeout_s):
                lease_s = request.timeout_s + _SLACK_S
                if key is not None:
                    if self._keys is None:
                        raise StoreUnavailable
                    name = fingerprint(agent.name, key)
                    known = await self._keys.acquire(name, body_fingerprint, run_id, lease_s)
                    if known is not None:
                        return known
                if request.thread_id is not None:
                    await self._acquire_thread(agent.name, request.thread_id, key, run_id, lease_s)
                return None
        except TimeoutError:
            raise StoreUnavailable from None

    async def _acquire_thread(
        self, agent: str, thread_id: str, key: str | None, run_id: str, lease_s: float
    ) -> None:
        deadline = self._clock.monotonic() + lease_s
        try:
            await self._threads.acquire(agent, thread_id, run_id, lease_s)
        except (InFlight, StoreUnavailable, asyncio.CancelledError) as refused:
            releasing = self._start(run_id, self._release(agent, key, None, run_id, deadline))
            if isinstance(refused, InFlight):  # else the store is unavailable, or the caller left
                await asyncio.wait({releasing}, timeout=_WAIT_S)
            raise

    def release_after(self, run: Run, key: str | None) -> None:
        """Release the locks of a run once it has ended."""
        if key is not None or run.request.thread_id is not None:
            self._start(run.id, self._settle(run, key))

    def _start(self, run_id: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        releasing = asyncio.create_task(work, name=f"locks of {run_id}")
        self._releasing[run_id].add(releasing)
        releasing.add_done_callback(partial(self._released, run_id))
        return releasing

    def _released(self, run_id: str, releasing: asyncio.Task[None]) -> None:
        self._releasing[run_id].discard(releasing)
        if not self._releasing[run_id]:
            del self._releasing[run_id]

    async def wait_until_released(self, run: Run) -> None:
        """Wait until an ended run has released its locks, so that its caller may ask again at once.

        Waits for _WAIT_S at most, and not longer than _PAST_DEADLINE_S past the deadline.
        """
        if releasing := self._releasing.get(run.id):
            remaining_s = run.deadline + _PAST_DEADLINE_S - self._clock.monotonic()
            await asyncio.wait(set(releasing), timeout=max(0.0, min(_WAIT_S, remaining_s)))

    async def _settle(self, run: Run, key: str | None) -> None:
        """Wait for the end, store its body under the key for repeats, then release the locks."""
        ended = await asyncio.shield(run.ended)
        agent, keys, deadline = run.agent.name, self._keys, run.deadline + _SLACK_S
        if key is not None and keys is not None and _is_remembered(ended):
            name, body = fingerprint(agent, key), self._render(run, ended)
            await self._until_expired(lambda: keys.store(name, run.id, body), deadline)
            key = None
        await run.conversation_written()  # the next run on the thread reads it
        await self._release(agent, key, run.request.thread_id, run.id, deadline)

    async def _release(
        self, agent: str, key: str | None, thread_id: str | None, run_id: str, deadline: float
    ) -> None:
        """Release both locks. While the store is unavailable, retry until the leases expire."""
        keys = self._keys
        if key is not None and keys is not None:
            name = fingerprint(agent, key)
            await self._until_expired(lambda: keys.release(name, run_id), deadline)
        if thread_id is not None:
            release = self._threads.release
            await self._until_expired(lambda: release(agent, thread_id, run_id), deadline)

    async def _until_expired(self, work: Callable[[], Awaitable[None]], deadline: float) -> None:
        """Retry until the deadline. The first attempt may take _FIRST_S, also after it."""
        remaining_s = max(_FIRST_S, deadline - self._clock.monotonic())
        with suppress(StoreUnavailable, TimeoutError):  # the lease expires by itself
            async with asyncio.timeout(remaining_s):
                await retry_until_available(work, deadline=deadline, clock=self._clock)

    async def close(self) -> None:
        """Wait, for a moment, until all locks are released. The leases of the others expire."""
        releasing = set[asyncio.Task[None]]().union(*self._releasing.values())
        if releasing:
            _, late = await asyncio.wait(releasing, timeout=_CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.wait(releasing, timeout=_CANCEL_S)


def _is_remembered(ended: Ended) -> bool:
    """Whether a repeat with the same key replays this end; it never replays a retryable failure."""
    is_retryable = ended.error is not None and ended.error.retryable
    return ended.outcome in _REMEMBERED and not is_retryable
