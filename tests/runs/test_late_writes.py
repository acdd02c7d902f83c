"""A finished answer stays the answer while its conversation is still being written."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from app.agents.conversations import InMemoryThreads
from app.runs.errors import Cancelled, HandedOver, InFlight
from app.runs.events import ConversationNotStored
from app.runs.live import LATE_WRITE_S, Ended, Run
from app.runs.locks import RunLocks
from app.runs.model import AgentAnswer, Mode, Outcome, RunRequest
from app.runs.ports import AgentCall
from app.runs.tasks import Body
from tests.runs import virtual_time
from tests.runs.scripted import Desk, Script, ScriptedAgent, loop_time
from tests.runs.test_background import Store, worked
from tests.waiting import came_true

pytestmark = pytest.mark.virtual_time

TIMEOUT_S = 2.0


def writes(write: Callable[[], Awaitable[object]]) -> Script:
    """A script that has its answer and then writes its conversation."""

    async def script(call: AgentCall) -> AgentAnswer:
        async def written() -> None:
            await write()

        answer = AgentAnswer("done")
        writing = asyncio.create_task(written())
        call.answered(answer, writing)
        await asyncio.shield(writing)
        return answer

    return script


def unrendered(run: Run, ended: Ended) -> Body:
    """No run has a key, so no body is rendered."""
    raise AssertionError


class Thread:
    """A run on a thread, with its locks."""

    def __init__(self, write: Callable[[], Awaitable[object]]) -> None:
        self.desk, self.threads = Desk(), InMemoryThreads()
        self.locks = RunLocks(None, self.threads, unrendered, virtual_time.clock())
        self._agent = ScriptedAgent(writes(write))

    async def begin(self) -> Run:
        """Start the run, and return it once its conversation is being written."""
        request = RunRequest("q", TIMEOUT_S, thread_id="t")
        await self.locks.acquire(self._agent.info, request, None, "", "run")
        run = self.desk.runner.start(self._agent, request, Mode.SYNC, "run")
        self.locks.release_after(run, None)
        await came_true(lambda: run.writing, "it writes")
        return run

    async def next_run(self) -> None:
        """Acquire the thread for the next run. Raises InFlight."""
        await self.threads.acquire("scripted", "t", "next", 1.0)

    async def free(self) -> float:
        """The moment at which the thread is free."""
        while True:
            with suppress(InFlight):
                await self.next_run()
                return loop_time()
            await asyncio.sleep(0.05)


async def test_answer_leaves_at_the_deadline_and_the_write_goes_on() -> None:
    """The run ends in time with its answer; the next one on the thread starts after the write."""
    written = asyncio.Event()
    thread, began = Thread(written.wait), loop_time()
    run = await thread.begin()
    ended = await asyncio.shield(run.ended)
    assert loop_time() - began == pytest.approx(TIMEOUT_S, abs=0.1)
    assert (ended.outcome, ended.answer) == (Outcome.COMPLETED, AgentAnswer("done"))
    with pytest.raises(InFlight):
        await thread.next_run()
    written.set()
    await thread.free()
    assert [final.outcome for final in thread.desk.finals()] == [Outcome.COMPLETED]
    assert thread.desk.facts_of(ConversationNotStored) == []
    await thread.desk.tasks_over()


async def test_write_that_does_not_end_is_given_up() -> None:
    """A write that does not end is given up, which a fact reports, and the thread is free."""
    thread, began = Thread(asyncio.Event().wait), loop_time()
    run = await thread.begin()
    assert (await asyncio.shield(run.ended)).outcome is Outcome.COMPLETED
    freed_s = await thread.free() - began
    assert freed_s == pytest.approx(TIMEOUT_S + LATE_WRITE_S, abs=0.2)
    assert [fact.error for fact in thread.desk.facts_of(ConversationNotStored)] == [None]


async def test_late_write_that_is_refused_is_reported() -> None:
    """A write that fails after its answer has left is reported with its error."""

    async def refused() -> None:
        await asyncio.sleep(TIMEOUT_S + 1.0)
        raise HandedOver

    thread = Thread(refused)
    run = await thread.begin()
    assert (await asyncio.shield(run.ended)).outcome is Outcome.COMPLETED
    await thread.free()
    [fact] = thread.desk.facts_of(ConversationNotStored)
    assert (fact.run_id, isinstance(fact.error, HandedOver)) == ("run", True)


async def test_cancelled_run_stops_its_write() -> None:
    """A run that is cancelled while it writes has no answer, and its thread is free at once."""
    thread, began = Thread(asyncio.Event().wait), loop_time()
    run = await thread.begin()
    thread.desk.runner.stop(run, Cancelled())
    assert (await asyncio.shield(run.ended)).outcome is Outcome.CANCELLED
    assert await thread.free() - began < TIMEOUT_S
    assert thread.desk.facts_of(ConversationNotStored) == []


async def test_end_of_a_background_run_is_stored_after_its_conversation() -> None:
    """The end of a background run, which frees its thread, is stored after the late write."""
    desk, store, order = Desk(), Store(TIMEOUT_S), list[str]()

    async def write() -> None:
        await asyncio.sleep(TIMEOUT_S + 1.0)
        order.extend(["conversation", *store.ended])

    result = await worked(desk, ScriptedAgent(writes(write)), store)
    assert (result["outcome"], store.ended) == (Outcome.COMPLETED, [Outcome.COMPLETED])
    assert order == ["conversation"]
