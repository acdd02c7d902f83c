"""Conversations of agents that keep none themselves: in memory, bounded, gone with the process."""

from collections import OrderedDict
from collections.abc import Sequence

from langchain_core.messages import BaseMessage, HumanMessage

_MOST_THREADS = 1_000
_MOST_MESSAGES = 100


class Conversations:
    """What was said, by thread id. The threads that were not used for longest are forgotten."""

    def __init__(self) -> None:
        self._threads: OrderedDict[str, list[BaseMessage]] = OrderedDict()

    def so_far(self, thread_id: str | None) -> list[BaseMessage]:
        """What was said in a thread; nothing in a new one, or without one."""
        if thread_id is None or thread_id not in self._threads:
            return []
        self._threads.move_to_end(thread_id)
        return list(self._threads[thread_id])

    def keep(self, thread_id: str | None, messages: Sequence[BaseMessage]) -> None:
        """What has been said now, all of it; the oldest questions go when there are too many."""
        if thread_id is None:
            return
        kept = list(messages)
        while len(kept) > _MOST_MESSAGES and (start := _second_question(kept)):
            kept = kept[start:]
        self._threads[thread_id] = kept
        self._threads.move_to_end(thread_id)
        while len(self._threads) > _MOST_THREADS:
            self._threads.popitem(last=False)


def _second_question(messages: Sequence[BaseMessage]) -> int | None:
    """Where the second question begins: an answer without its question would mislead."""
    asked = [at for at, message in enumerate(messages) if isinstance(message, HumanMessage)]
    return asked[1] if len(asked) > 1 else None
