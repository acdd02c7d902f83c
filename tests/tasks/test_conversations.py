"""A conversation stores only messages of a run that holds the thread and was not cancelled."""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from app.agents import registry
from app.agents.conversations import Conversations, InMemoryThreads
from app.runs.errors import HandedOver
from app.runs.model import AgentAnswer, AgentInfo, EarlyStopping
from app.runs.ports import AgentCall
from app.tasks.conversations import ConversationStore
from app.tasks.store import Store
from tests import fakes, faults
from tests.agents.test_conversations import build, spoken
from tests.service import served
from tests.tasks.background import LONG_S, ended, submit, url_in
from tests.waiting import came_true


class Held:
    """A graph's only node, which answers when it is released."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, state: object) -> dict[str, list[BaseMessage]]:
        self.asked.set()
        await self.release.wait()
        return {"messages": [AIMessage("late")]}


async def test_cancelled_run_stores_no_conversation(tmp_path: Path) -> None:
    """Even if it answers before its process learns of it: a later run may hold the thread."""
    held = Held()
    async with served({"held": faults.graph_of(held)}, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk, "one", thread_id="t")
        await came_true(held.asked.is_set, "the agent was asked")
        await desk.service.tasks.cancel(task_id)
        held.release.set()
        assert (await ended(desk, task_id))["status"] == "cancelled"
        await desk.idle()
        assert (await desk.client.get("/threads/t")).status_code == 404


@pytest.mark.parametrize("thread_id", ["t", None])
async def test_answer_after_the_cancel_stands_without_a_conversation(
    thread_id: str | None, tmp_path: Path
) -> None:
    """Before its process learns of it: without a conversation to write the answer stands."""
    held = Held()
    async with served({"held": faults.graph_of(held)}, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk, "one", thread_id=thread_id)
        await came_true(held.asked.is_set, "the agent was asked")
        await desk.service.tasks.cancel(task_id)
        held.release.set()
        await desk.idle()
        task, end = await ended(desk, task_id), desk.end_of(task_id)
        # Without one it stands, unless its process looked at the store just then.
        assert task["status"] == end.outcome
        assert thread_id is None or end.outcome == "cancelled"


async def test_half_a_surrogate_pair_can_be_read(tmp_path: Path) -> None:
    """A conversation in which a model wrote half a surrogate pair can be read."""

    def reply(_: Sequence[BaseMessage]) -> AIMessage:
        return AIMessage("half \ud83d of it", usage_metadata=fakes.USAGE)

    agent = fakes.build("create_agent", fakes.ScriptedModel(script=reply), [])
    async with served({"a": agent}, store_url=url_in(tmp_path)) as desk:
        await ended(desk, await submit(desk, "one", thread_id="t"))
        answer = await desk.client.get("/threads/t")
        assert answer.status_code == 200
        assert answer.json()["messages"][-1]["content"] == "half ? of it"


async def test_thread_of_a_first_run_cannot_be_deleted(tmp_path: Path) -> None:
    """A thread without messages is in use as well: deleting it is a conflict."""
    held = Held()
    async with served({"held": faults.graph_of(held)}, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk, "one", thread_id="t")
        dropped = await desk.client.delete("/threads/t")
        assert (dropped.status_code, dropped.json()["code"]) == (409, "in_flight")
        held.release.set()
        await ended(desk, task_id)
        assert (await desk.client.delete("/threads/t")).status_code == 204
        assert (await desk.client.delete("/threads/t")).status_code == 404


async def test_takeover_deletes_only_its_own_messages() -> None:
    """A resumed executor deletes what its own attempt stored, not messages that read alike."""
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("look", turns=0))
    agent: Any = registry.adapt(build("with_history", model), "a", AgentInfo(name="a", kind=""))
    agent.use_store(InMemoryThreads())

    async def ask(run_id: str, **others: Any) -> list[str]:
        call = AgentCall(
            run_id, "yes", 5, EarlyStopping.FORCE, "t", print, lambda *_: None, **others
        )
        await agent.answer(call)
        return spoken(model)

    assert await ask("first") == ["yes"]
    assert len(await ask("second", resumed=True)) == 3
    assert len(await ask("second", resumed=True)) == 3
    assert [m.type for m in model.asked[-1] if isinstance(m, HumanMessage)] == ["human"] * 2


@pytest.mark.parametrize(
    ("mode", "outcome", "code"),
    [("agent", "timeout", "timeout"), ("agent/async", "failed", "store_unavailable")],
)
async def test_run_that_lost_its_thread_stores_nothing(
    mode: str, outcome: str, code: str, tmp_path: Path
) -> None:
    """The run ends and stores nothing: its time was over, or it was stored too late."""
    held = Held()
    async with served({"held": faults.graph_of(held)}, store_url=url_in(tmp_path)) as desk:
        body = {"question": "one", "thread_id": "t", "timeout": 20}
        asking = asyncio.create_task(desk.client.post(f"/{mode}", json=body))
        await came_true(held.asked.is_set, "the agent was asked")
        [run_id] = desk.service.runner.in_flight
        await desk.service.conversations.release("held", "t", run_id)
        await desk.service.conversations.acquire("held", "t", "another", 60)
        held.release.set()
        response = await asyncio.wait_for(asking, 20)
        error = response.json()
        if mode == "agent/async":
            error = (await ended(desk, run_id))["error"]
        assert (error["outcome"], error["code"], error["retryable"]) == (outcome, code, True)
        assert desk.end_of(run_id).outcome == outcome
        assert (await desk.client.get("/threads/t")).status_code == 404
        desk.books_balance()


async def test_only_the_attempt_that_owns_a_run_stores_its_conversation(tmp_path: Path) -> None:
    """A former attempt has the id of the run that holds the thread, but another claim token."""
    held = Held()
    async with served({"a": faults.graph_of(held)}, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk, "one", thread_id="t")
        await came_true(held.asked.is_set, "the agent was asked")
        owner = await asyncio.to_thread(claim, url_in(tmp_path), task_id, "newer")
        conversations = Conversations("a", desk.service.conversations)
        with pytest.raises(HandedOver):
            await conversations.store(call_of(task_id, owner), *said("stale"))
        assert await conversations.history("t") == []
        await conversations.store(call_of(task_id, "newer"), *said("new"))
        assert [message.text for message in await conversations.history("t")] == ["new"]
        assert await asyncio.to_thread(claim, url_in(tmp_path), task_id, owner) == "newer"
        held.release.set()
        assert (await ended(desk, task_id))["status"] == "completed"


async def test_takeover_waits_for_the_owner_that_stores(tmp_path: Path) -> None:
    """Nobody takes a run over between the check of its owner and the commit of the conversation."""
    held = Held()
    async with served({"a": faults.graph_of(held)}, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk, "one", thread_id="t")
        await came_true(held.asked.is_set, "the agent was asked")
        committing, go_on = threading.Event(), threading.Event()

        def hold(_: Any) -> None:
            committing.set()
            go_on.wait(LONG_S)

        store = await asyncio.to_thread(Store, url_in(tmp_path))
        sa.event.listen(store.calls, "commit", hold)
        owner = await asyncio.to_thread(claim, url_in(tmp_path), task_id, None)
        conversations = Conversations("a", ConversationStore(store))
        storing = conversations.store(call_of(task_id, owner), *said("one"))
        stored = asyncio.create_task(storing)
        await came_true(committing.is_set, "the conversation is being committed")
        with pytest.raises(sa.exc.OperationalError, match="lock"):
            await asyncio.to_thread(claim, url_in(tmp_path), task_id, "newer", wait_ms=300)
        go_on.set()
        await stored
        await asyncio.to_thread(store.close)
        held.release.set()
        assert (await ended(desk, task_id))["status"] == "completed"


def claim(url: str, task_id: str, token: str | None, wait_ms: int = 20_000) -> str:
    """Give a run another claim token, if there is one; its former one."""
    with closing(Store(url)) as store, store.worker.begin() as connection:
        runs = "workflow_status" if store.is_file else "dbos.workflow_status"
        wait = "pragma busy_timeout = {}" if store.is_file else "set local lock_timeout = {}"
        connection.exec_driver_sql(wait.format(wait_ms))
        which = {"id": task_id, "token": token}
        chosen = sa.text(f"select owner_xid from {runs} where workflow_uuid = :id")
        former = str(connection.execute(chosen, which).scalar_one())
        if token is not None:
            changed = f"update {runs} set owner_xid = :token where workflow_uuid = :id"
            connection.execute(sa.text(changed), which)
        return former


def said(text: str) -> tuple[AgentAnswer, list[BaseMessage]]:
    """An answer, and the conversation with it."""
    return AgentAnswer(text), [HumanMessage(text)]


def call_of(task_id: str, claim_token: str) -> Any:
    """The call of an attempt whose fence was passed a moment ago."""

    async def confirm_owned() -> None:
        pass

    fence = SimpleNamespace(claim_token=claim_token, confirm_owned=confirm_owned)
    return SimpleNamespace(run_id=task_id, thread_id="t", fence=fence, answered=lambda *_: None)
