"""What a run that gave no answer leaves of its conversation."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver

from tests import fakes
from tests.service import served
from tests.tasks.background import ended, submit, url_in


def says(messages: Sequence[BaseMessage]) -> AIMessage:
    """Ask for a nap when asked to, else answer."""
    question = [message for message in messages if message.type == "human"][-1]
    if question.text == "nap":
        return fakes.asks("nap", {})
    return AIMessage(f"heard {question.text}", usage_metadata=fakes.USAGE)


async def test_a_cancelled_run_leaves_its_thread_as_it_was(tmp_path: Path) -> None:
    """Of a background run that was cancelled, the next run on the thread reads nothing."""
    model = fakes.ScriptedModel(script=says)
    agent = fakes.build("create_agent", model, fakes.ToolDesk(20.0).tools())
    async with served({"a": agent}, store_url=url_in(tmp_path)) as desk:
        await ended(desk, await submit(desk, "one", thread_id="t"))
        napping = await submit(desk, "nap", thread_id="t")
        while not desk.service.runner.in_flight:
            await desk.client.get("/health")
        assert (await desk.client.delete(f"/agent/async/{napping}")).status_code == 200
        assert (await ended(desk, napping))["status"] == "cancelled"
        kept = (await desk.client.get("/threads/t")).json()["messages"]
        assert [message["content"] for message in kept] == ["one", "heard one"]
        await ended(desk, await submit(desk, "two", thread_id="t"))
        said = [message.text for message in model.asked[-1] if message.type != "system"]
        assert said == ["one", "heard one", "two"]


@pytest.mark.parametrize("mode", ["agent", "agent/async"])
async def test_a_graph_that_keeps_its_threads_is_repaired(mode: str, tmp_path: Path) -> None:
    """Calls that a run left open are answered before the next question: providers demand it."""
    model = fakes.ScriptedModel(script=says)
    options = {"checkpointer": InMemorySaver()}
    agent = fakes.build("langgraph", model, fakes.ToolDesk(20.0).tools(), **options)
    async with served({"a": agent}, store_url=url_in(tmp_path)) as desk:
        body = {"question": "nap", "thread_id": "t", "timeout": 1.0}
        first = await desk.client.post(f"/{mode}", json=body)
        if mode == "agent/async":
            assert (await ended(desk, first.json()["task_id"]))["status"] == "timeout"
        else:
            assert first.status_code == 504
        assert (await desk.ask("two", thread_id="t")).json()["answer"] == "heard two"
    asked = {c["id"] for m in model.asked[-1] if isinstance(m, AIMessage) for c in m.tool_calls}
    answered = {m.tool_call_id for m in model.asked[-1] if isinstance(m, ToolMessage)}
    assert asked
    assert asked == answered


async def test_a_thread_in_use_is_not_dropped(tmp_path: Path) -> None:
    """While a run has a thread, dropping it is a conflict, and another run still is one too."""
    model = fakes.ScriptedModel(script=says)
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


async def test_a_conversation_belongs_to_an_agent(tmp_path: Path) -> None:
    """`?agent=` names whose conversation it is; the same thread of another agent is another."""
    agents = {
        name: fakes.build("create_agent", fakes.ScriptedModel(script=says), [])
        for name in ("first", "second")
    }
    async with served(agents, store_url=url_in(tmp_path)) as desk:
        await ended(desk, await submit(desk, "one", "first", thread_id="t"))
        place, second = "/threads/t", {"agent": "second"}
        for response in (
            await desk.client.get(place, params=second),
            await desk.client.delete(place, params=second),
            await desk.client.get(place, params={"agent": "nobody"}),
        ):
            assert (response.status_code, response.json()["code"]) == (404, "not_found")
        await desk.ask("two", "second", thread_id="t")
        kept = {}
        for name in agents:
            told = (await desk.client.get(place, params={"agent": name})).json()
            assert (told["thread_id"], told["agent"]) == ("t", name)
            kept[name] = [message["content"] for message in told["messages"]]
        assert kept == {"first": ["one", "heard one"], "second": ["two", "heard two"]}
        assert (await desk.client.delete(place, params=second)).status_code == 204
        assert (await desk.client.get(place)).status_code == 200
        assert (await desk.client.get(place, params=second)).status_code == 404
