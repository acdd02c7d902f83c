"""Conversations of agents without their own checkpointer: bounded, in a store or in memory."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    message_to_dict,
    messages_from_dict,
)

from app.runs.errors import HandedOver, InFlight
from app.runs.model import AgentAnswer
from app.runs.ports import AgentCall, ThreadStore
from app.runs.retries import retry_until_available

T = TypeVar("T")

_MOST_THREADS = 1_000
_MOST_MESSAGES = 100
# Of the stored JSON. Two texts that were cut have fewer, whatever their characters are.
MOST_BYTES = 1_000_000
_MOST_CHARACTERS = 40_000
_SEPARATOR = ", "


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

    async def store(
        self, call: AgentCall, answer: AgentAnswer, messages: Sequence[BaseMessage]
    ) -> None:
        """Store the whole conversation, as far as its bounds allow.

        The write belongs to the run, which has its answer: if only the caller is cancelled, it goes
        on. Raises HandedOver if this process no longer owns the run or its thread.
        """
        if call.thread_id is None:
            return
        text = _bounded(messages, answer)
        name = f"conversation of {call.run_id}"
        writing = asyncio.create_task(self._write(call, call.thread_id, text), name=name)
        call.answered(answer, writing)
        await asyncio.shield(writing)

    async def _write(self, call: AgentCall, thread_id: str, text: str) -> None:
        claim_token = None
        if call.fence is not None:
            await call.fence.confirm_owned()
            claim_token = call.fence.claim_token
        write, run_id = self._store.write, call.run_id
        await retry_until_available(
            lambda: write(self._agent, thread_id, run_id, text, claim_token)
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


def _bounded(messages: Sequence[BaseMessage], answer: AgentAnswer) -> str:
    """Return the newest messages as JSON, from a question on.

    Beyond a bound the oldest questions are dropped, each with all that follows it. If the last one
    alone has too many bytes, the texts of question and answer are left, and long ones are cut.
    """
    texts = [_as_json(message) for message in messages]
    sizes = [len(text) + len(_SEPARATOR) for text in texts]  # JSON has ASCII characters only
    questions = [at for at, message in enumerate(messages) if isinstance(message, HumanMessage)]
    starts = [0, *questions[1:]]
    for start in starts:
        has_few = len(texts) - start <= _MOST_MESSAGES or start == starts[-1]
        if has_few and sum(sizes[start:]) <= MOST_BYTES:
            return f"[{_SEPARATOR.join(texts[start:])}]"
    asked = [messages[at] for at in questions[-1:]]
    left = [HumanMessage(_cut(str(question.text)), id=question.id) for question in asked]
    return f"[{_SEPARATOR.join(map(_as_json, [*left, AIMessage(_cut(answer.text))]))}]"


def _as_json(message: BaseMessage) -> str:
    return json.dumps(message_to_dict(message), default=str)


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
