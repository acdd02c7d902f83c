"""What a run without an answer leaves in its conversation."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pytest
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver

from tests import fakes
from tests.service import served, until
from tests.tasks.background import ended, submit, url_in


def repeat_question(messages: Sequence[BaseMessage]) -> AIMessage:
    """Ask for a nap when asked to, else answer."""
    question = [message for message in messages if message.type == "human"][-1]
    if question.text == "nap":
        return fakes.asks("nap", {})
    return AIMessage(f"heard {question.text}", usage_metadata=fakes.USAGE)


async def test_cancelled_run_leaves_its_thread_unchanged(tmp_path: Path) -> None:
    """The next run on the thread reads nothing of a cancelled background run."""
    model = fakes.ScriptedModel(script=repeat_question)
    agent = fakes.build("create_agent", model, fakes.ToolDesk(20.0).tools())
    async with served({"a": agent}, store_url=url_in(tmp_path)) as desk:
        await ended(desk, await submit(desk, "one", thread_id="t"))
        napping = await submit(desk, "nap", thread_id="t")
        await until(lambda: desk.service.runner.in_flight)
        assert (await desk.client.delete(f"/agent/async/{napping}")).status_code == 200
        assert (await ended(desk, napping))["status"] == "cancelled"
        messages = (await desk.client.get("/threads/t")).json()["messages"]
        assert [message["content"] for message in messages] == ["one", "heard one"]
        await ended(desk, await submit(desk, "two", thread_id="t"))
        prompt = [message.text for message in model.asked[-1] if message.type != "system"]
        assert prompt == ["one", "heard one", "two"]


@pytest.mark.parametrize("mode", ["agent", "agent/async"])
async def test_open_calls_of_a_thread_are_answered(mode: str, tmp_path: Path) -> None:
    """Calls that a run left open get answers before the next question: providers require it."""
    model = fakes.ScriptedModel(script=repeat_question)
    options = {"checkpointer": InMemorySaver()}
    agent = fakes.build("langgraph", model, fakes.ToolDesk(20.0).tools(), **options)
    async with served({"a": agent}, store_url=url_in(tmp_path)) as desk:
        body = {"question": "nap", "thread_id": "t", "timeout": 3.0}
        first = await desk.client.post(f"/{mode}", json=body)
        if mode == "agent/async":
            assert (await ended(desk, first.json()["task_id"]))["status"] == "timeout"
        else:
            assert first.status_code == 504
        assert (await desk.ask("two", thread_id="t")).json()["answer"] == "heard two"
    call_ids = {c["id"] for m in model.asked[-1] if isinstance(m, AIMessage) for c in m.tool_calls}
    answered = {m.tool_call_id for m in model.asked[-1] if isinstance(m, ToolMessage)}
    assert call_ids
    assert call_ids == answered


async def test_thread_in_use_cannot_be_deleted(tmp_path: Path) -> None:
    """While a run holds a thread, deleting it is a conflict, and so is another run."""
    model = fakes.ScriptedModel(script=repeat_question)
    agent = fakes.build("create_agent", model, fakes.ToolDesk(20.0).tools())
    async with served({"a": agent}, store_url=url_in(tmp_path)) as desk:
        await ended(desk, await submit(desk, "one", thread_id="t"))
        napping = await submit(desk, "nap", thread_id="t")
        for answer in (
            await desk.client.delete("/threads/t"),
            await desk.ask("two", thread_id="t"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (409, "in_flight")
        await desk.client.delete(f"/agent/async/{napping}")
        assert (await desk.client.delete("/threads/t")).status_code == 204
        for method in ("GET", "DELETE"):
            for nobody in ("t", "%00"):
                unknown = await desk.client.request(method, f"/threads/{nobody}")
                assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")


async def test_conversation_belongs_to_an_agent(tmp_path: Path) -> None:
    """`?agent=` selects the agent; the same thread of another agent is another conversation."""
    agents = {
        name: fakes.build("create_agent", fakes.ScriptedModel(script=repeat_question), [])
        for name in ("first", "second")
    }
    async with served(agents, store_url=url_in(tmp_path)) as desk:
        await ended(desk, await submit(desk, "one", "first", thread_id="t"))
        path, second = "/threads/t", {"agent": "second"}
        for response in (
            await desk.client.get(path, params=second),
            await desk.client.delete(path, params=second),
            await desk.client.get(path, params={"agent": "nobody"}),
        ):
            assert (response.status_code, response.json()["code"]) == (404, "not_found")
        await desk.ask("two", "second", thread_id="t")
        contents = {}
        for name in agents:
            body = (await desk.client.get(path, params={"agent": name})).json()
            assert (body["thread_id"], body["agent"]) == ("t", name)
            contents[name] = [message["content"] for message in body["messages"]]
        assert contents == {"first": ["one", "heard one"], "second": ["two", "heard two"]}
        assert (await desk.client.delete(path, params=second)).status_code == 204
        assert (await desk.client.get(path)).status_code == 200
        assert (await desk.client.get(path, params=second)).status_code == 404


async def test_thread_may_have_any_name(tmp_path: Path) -> None:
    """A thread of any name can be read and deleted, even with a slash."""
    agent = fakes.build("create_agent", fakes.ScriptedModel(script=repeat_question), [])
    async with served({"a": agent}, store_url=url_in(tmp_path)) as desk:
        for name in (
            "team/42",
            "/",
            "a/",
            "team%2F42",
            "?a=b#c",
            "\u00e9 \U0001f98a",
            "a//b",
        ):
            assert (await desk.ask("one", thread_id=name)).status_code == 200
            path = f"/threads/{quote(name, safe='')}"
            thread = await desk.client.get(path)
            assert (thread.status_code, thread.json().get("thread_id")) == (200, name)
            assert (await desk.client.delete(path)).status_code == 204
            assert (await desk.client.get(path)).status_code == 404
        for nothing in ("/threads", "/threads/"):
            assert (await desk.client.get(nothing)).status_code == 404


async def test_conversation_outlives_its_agent(tmp_path: Path) -> None:
    """The conversation of an agent that is no longer served can be read and deleted."""
    model = fakes.ScriptedModel(script=repeat_question)
    agent = fakes.build("create_agent", model, [])
    async with served({"old": agent}, store_url=url_in(tmp_path)) as desk:
        await desk.ask("one", thread_id="t")
    async with served({"new": agent}, store_url=url_in(tmp_path)) as desk:
        assert (await desk.client.get("/threads/t")).status_code == 404
        old, nobody = {"agent": "old"}, {"agent": "\0"}
        thread = await desk.client.get("/threads/t", params=old)
        assert (thread.status_code, thread.json()["agent"]) == (200, "old")
        assert [m["content"] for m in thread.json()["messages"]] == ["one", "heard one"]
        assert (await desk.client.delete("/threads/t", params=old)).status_code == 204
        for method in ("GET", "DELETE"):
            for whose in (old, nobody):
                response = await desk.client.request(method, "/threads/t", params=whose)
                assert (response.status_code, response.json()["code"]) == (404, "not_found")
