"""Streams at the limits of a run and of the service, and runs that do not stream."""

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage

from app.runs.events import ModelCallStarted
from tests import fakes, loops
from tests.service import served
from tests.streams.reading import of, path, stream, text_of


@pytest.mark.parametrize("kind", loops.ALL)
@pytest.mark.parametrize("early_stopping", ["generate", "force"])
async def test_last_answer_at_the_limit_is_streamed(kind: str, early_stopping: str) -> None:
    """At the limit the streamed text is the last answer, or the fixed sentence once."""
    calls = 2 if early_stopping == "generate" else 99
    agent = loops.build(kind, loops.asks_times(kind, calls), fakes.ToolDesk().tools())
    async with served({"a": agent}, max_iterations=2, early_stopping=early_stopping) as desk:
        events = await stream(desk, "a")
    end = events[-1].data
    assert (end["outcome"], end["iterations"]) == ("iteration_limit", 2)
    assert text_of(events) == end["answer"]
    assert (end["answer"] == loops.ANSWER) is (early_stopping == "generate")
    if early_stopping == "force":
        assert len(of(events, "token")) == 1
    assert len(desk.facts_of(ModelCallStarted)) == 2 + (early_stopping == "generate")


async def test_refused_and_late_runs_are_plain_problems() -> None:
    """A run that is refused, or that times out in the queue, is a plain problem."""
    model = loops.asks_times("langgraph", 1, tool="nap", arguments={})
    tools = fakes.ToolDesk(seconds=60)
    agent = loops.build("langgraph", model, tools.tools())
    async with served({"a": agent}, max_running_runs=1, max_queued_runs=1) as desk:
        body = {"question": "q"}
        holds = asyncio.create_task(stream(desk, "a", timeout=90))
        await tools.started_calls()
        late = await desk.client.post(path("a"), json={**body, "timeout": 0.3})
        assert (late.status_code, late.json()["phase"]) == (504, "queue")
        assert late.headers["content-type"] == "application/problem+json"
        queued = asyncio.create_task(stream(desk, "a", timeout=90))
        await desk.busy(waiting=1)
        refused = await desk.client.post(path("a"), json=body)
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"]
        tools.seconds = 0.0
        tools.release()
        for events in (await holds, await queued):
            assert events[-1].data["outcome"] == "completed"
        desk.books_balance()


@pytest.mark.parametrize("kind", ["create_agent", "langgraph"])
async def test_sync_runs_do_not_stream(kind: str) -> None:
    """A run without a reader never makes its model stream."""
    streamed = list[str]()

    class Model(fakes.ScriptedModel):
        async def _astream(self, messages: list[BaseMessage], *args: Any, **given: Any) -> Any:
            streamed.append("yes")
            async for chunk in super()._astream(messages, *args, **given):
                yield chunk

    agent = fakes.build(kind, Model(script=lambda _: AIMessage("hello there")), [])
    async with served({"a": agent}) as desk:
        assert (await desk.ask()).json()["answer"] == "hello there"
        assert streamed == []
        assert text_of(await stream(desk)) == "hello there"
        assert streamed == ["yes"]
