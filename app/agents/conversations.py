"""Conversations of agents that keep none themselves: bounded, on the store or in memory."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from langchain_core.messages import (
    BaseMessage,
    HumanMessage,
    messages_from_dict,
    messages_to_dict,
)

from app.runs.errors import HandedOver, InFlight, StoreUnavailable
from app.runs.ports import AgentCall, ThreadStore

T = TypeVar("T")

_AGAIN_S = 0.5
_MOST_THREADS = 1_000
_MOST_MESSAGES = 100


class Conversations:
    """What was said with one agent, by thread id."""

    def __init__(self, agent: str, store: ThreadStore) -> None:
        self._agent = agent
        self._store = store

    async def history(self, thread_id: str | None) -> list[BaseMessage]:
        """What was said in a thread; nothing in a new one, or without one."""
        if thread_id is None:
            return []
        said = await _until_available(lambda: self._store.read(self._agent, thread_id))
        return [] if said is None else messages_from_dict(json.loads(said))

    async def store(self, call: AgentCall, messages: Sequence[BaseMessage]) -> None:
        """What has been said now, all of it; the oldest questions go when there are too many.

        Raises HandedOver where the run, or its thread, is not its own any more.
        """
        thread_id, run_id = call.thread_id, call.run_id
        if thread_id is None:
            return
        kept = list(messages)
        while len(kept) > _MOST_MESSAGES and (start := _second_question(kept)):
            kept = kept[start:]
        text = json.dumps(messages_to_dict(kept), default=str)
        if call.fence is not None:
            await call.fence.confirm_owned()
        await _until_available(lambda: self._store.write(self._agent, thread_id, run_id, text))


async def _until_available(work: Callable[[], Awaitable[T]]) -> T:
    """A store that is away does not take the run with it: it is tried until the run is stopped.

    The deadline does that, so it alone decides how such a run ends.
    """
    while True:
        try:
            return await work()
        except StoreUnavailable:
            await asyncio.sleep(_AGAIN_S)


class InMemoryThreads:
    """Threads that are gone with the process; those not used for longest are forgotten."""

    def __init__(self) -> None:
        self._said: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._held: dict[tuple[str, str], str] = {}

    async def acquire(self, agent: str, thread_id: str, run_id: str, lease_s: float) -> None:
        """Take a thread for a run. Raises InFlight when another run has it."""
        if self._held.setdefault((agent, thread_id), run_id) != run_id:
            raise InFlight

    async def release(self, agent: str, thread_id: str, run_id: str) -> None:
        """Give a thread back."""
        if self._held.get((agent, thread_id)) == run_id:
            del self._held[agent, thread_id]

    async def read(self, agent: str, thread_id: str) -> str | None:
        """What was kept, or None for a thread that is not known."""
        if (agent, thread_id) in self._said:
            self._said.move_to_end((agent, thread_id))
        return self._said.get((agent, thread_id))

    async def write(self, agent: str, thread_id: str, run_id: str, text: str) -> None:
        """Keep this, in the place of what was kept. Raises HandedOver when another run has it."""
        if self._held.get((agent, thread_id), run_id) != run_id:
            raise HandedOver
        self._said[agent, thread_id] = text
        self._said.move_to_end((agent, thread_id))
        while len(self._said) > _MOST_THREADS:
            self._said.popitem(last=False)

    async def delete(self, agent: str, thread_id: str) -> bool:
        """Drop a thread; false if it was not known. Raises InFlight while a run has it."""
        if (agent, thread_id) in self._held:
            raise InFlight
        return self._said.pop((agent, thread_id), None) is not None


def _second_question(messages: Sequence[BaseMessage]) -> int | None:
    """Where the second question begins: an answer without its question would mislead."""
    asked = [at for at, message in enumerate(messages) if isinstance(message, HumanMessage)]
    return asked[1] if len(asked) > 1 else None
