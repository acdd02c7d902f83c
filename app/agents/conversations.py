"""Conversations of agents without their own checkpointer: bounded, in a store or in memory."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

from langchain_core.messages import (
    BaseMessage,
    HumanMessage,
    messages_from_dict,
    messages_to_dict,
)

from app.runs.errors import HandedOver, InFlight
from app.runs.ports import AgentCall, ThreadStore
from app.runs.retries import retry_until_available

T = TypeVar("T")

_MOST_THREADS = 1_000
_MOST_MESSAGES = 100


class Conversations:
    """The conversations of one agent, by thread id."""

    def __init__(self, agent: str, store: ThreadStore) -> None:
        self._agent = agent
        self._store = store

    async def history(self, thread_id: str | None) -> list[BaseMessage]:
        """Return the messages of a thread; empty for a new thread or for no thread."""
        if thread_id is None:
            return []
        text = await retry_until_available(lambda: self._store.read(self._agent, thread_id))
        return [] if text is None else messages_from_dict(json.loads(text))

    async def store(self, call: AgentCall, messages: Sequence[BaseMessage]) -> None:
        """Store the whole conversation. Beyond the bound, the oldest questions are dropped.

        Raises HandedOver if this process no longer owns the run or its thread.
        """
        thread_id, run_id = call.thread_id, call.run_id
        if thread_id is None:
            return
        recent = list(messages)
        while len(recent) > _MOST_MESSAGES and (start := _second_question(recent)):
            recent = recent[start:]
        text = json.dumps(messages_to_dict(recent), default=str)
        claim_token = None
        if call.fence is not None:
            await call.fence.confirm_owned()
            claim_token = call.fence.claim_token
        await retry_until_available(
            lambda: self._store.write(self._agent, thread_id, run_id, text, claim_token)
        )


class InMemoryThreads:
    """Threads in memory: lost with the process. The least recently used ones are evicted."""

    def __init__(self) -> None:
        self._texts: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._holders: dict[tuple[str, str], str] = {}

    async def acquire(self, agent: str, thread_id: str, run_id: str, lease_s: float) -> None:
        """Acquire a thread for a run. Raises InFlight if another run holds it."""
        if self._holders.setdefault((agent, thread_id), run_id) != run_id:
            raise InFlight

    async def release(self, agent: str, thread_id: str, run_id: str) -> None:
        """Release a thread."""
        if self._holders.get((agent, thread_id)) == run_id:
            del self._holders[agent, thread_id]

    async def read(self, agent: str, thread_id: str) -> str | None:
        """Return the stored text; None for an unknown thread."""
        if (agent, thread_id) in self._texts:
            self._texts.move_to_end((agent, thread_id))
        return self._texts.get((agent, thread_id))

    async def write(
        self, agent: str, thread_id: str, run_id: str, text: str, claim_token: str | None = None
    ) -> None:
        """Replace the stored text. Raises HandedOver if another run holds the thread."""
        if self._holders.get((agent, thread_id), run_id) != run_id:
            raise HandedOver
        self._texts[agent, thread_id] = text
        self._texts.move_to_end((agent, thread_id))
        while len(self._texts) > _MOST_THREADS:
            self._texts.popitem(last=False)

    async def delete(self, agent: str, thread_id: str) -> bool:
        """Delete a thread; return False if unknown. Raises InFlight while a run holds it."""
        if (agent, thread_id) in self._holders:
            raise InFlight
        return self._texts.pop((agent, thread_id), None) is not None


def _second_question(messages: Sequence[BaseMessage]) -> int | None:
    """Return the index of the second question, so that no answer is left without its question."""
    questions = [at for at, message in enumerate(messages) if isinstance(message, HumanMessage)]
    return questions[1] if len(questions) > 1 else None
