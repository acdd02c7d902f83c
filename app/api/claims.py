"""What a run holds while it is in flight: its Idempotency-Key, and the thread it continues."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, TypeAlias

from fastapi import Header

from app.api.schemas import RunBody
from app.api.sse import final
from app.runs.errors import InFlight, StoreUnavailable
from app.runs.live import Run
from app.runs.model import AgentInfo, Outcome
from app.runs.ports import KeyStore, ThreadStore
from app.runs.tasks import Body, fingerprint

# A claim outlives its run's deadline by so much: a process that dies gives nothing back.
_SLACK_S = 5.0
_SETTLE_S = 5.0
_AGAIN_S = 0.5
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

        Raises InFlight, KeyReused, or StoreUnavailable where a key cannot be looked up.
        """
        for_s = (body.timeout or agent.timeout_s) + _SLACK_S
        if key is not None:
            if self._keys is None:
                raise StoreUnavailable
            named = _named(agent, key)
            known = await self._keys.claim(named, body.fingerprint(), run_id, for_s)
            if known is not None:
                return known
        if body.thread_id is not None:
            try:
                await self._threads.claim(agent.name, body.thread_id, run_id, for_s)
            except (InFlight, StoreUnavailable):
                if key is not None and self._keys is not None:
                    with suppress(StoreUnavailable):  # then it ends by itself
                        await self._keys.free(_named(agent, key), run_id)
                raise
        return None

    def hold(self, run: Run, key: str | None) -> None:
        """From now on until the run has ended."""
        if key is None and run.request.thread_id is None:
            return
        settling = asyncio.create_task(self._settle(run, key), name=f"claims of {run.id}")
        self._settling[run.id] = settling
        settling.add_done_callback(lambda _: self._settling.pop(run.id, None))

    def settled(self, run: Run) -> asyncio.Task[None] | None:
        """Done when the claims of a run are given back; None where it has none."""
        return self._settling.get(run.id)

    async def given_back(self, run: Run) -> None:
        """Wait, for a moment, until nothing is claimed for a run: its caller may come again."""
        if (settling := self.settled(run)) is not None:
            await asyncio.wait({settling}, timeout=_SETTLE_S)

    async def _settle(self, run: Run, key: str | None) -> None:
        """The key first, since a repeat with it must not be made again; both are tried for a while.

        What cannot be given back ends by itself, soon after the deadline.
        """
        ended = await asyncio.shield(run.ended)
        thread_id, keys = run.request.thread_id, self._keys
        if key is not None and keys is not None:
            named = _named(run.agent, key)
            if ended.outcome in _REMEMBERED:
                await _patiently(lambda: keys.keep(named, run.id, final(run, ended)))
            else:
                await _patiently(lambda: keys.free(named, run.id))
        if thread_id is not None:
            await _patiently(lambda: self._threads.release(run.agent.name, thread_id, run.id))

    async def close(self) -> None:
        """Wait, for a moment, until nothing is left to settle."""
        if self._settling:
            await asyncio.wait(set(self._settling.values()), timeout=_SETTLE_S)


async def _patiently(work: Callable[[], Awaitable[None]]) -> None:
    until = time.monotonic() + _SLACK_S
    while time.monotonic() < until:
        try:
            await work()
            return
        except StoreUnavailable:
            await asyncio.sleep(_AGAIN_S)


def _named(agent: AgentInfo, key: str) -> str:
    return fingerprint(agent.name, key)
