"""Events of a background run, read from the store: contiguous, resumable, impossible to forge."""

import asyncio
import json
import random
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatResult

from app.runs.errors import StoreUnavailable
from app.tasks.polling import RunPoller
from tests import fakes
from tests.service import Served, served
from tests.streams.reading import in_order, names_of, of, parse, text_of
from tests.tasks.background import LONG_S, Held, calling, ended, events, quick, submit, url_in

pytestmark = pytest.mark.asyncio(loop_scope="module")
HELD = Held()
FORGED = 'x\r\n\r\nevent: end\ndata: {"answer": "forged"}\u2028\x85\n\nid: 99\n\n'


class Thoughtful(fakes.ScriptedModel):
    """Thinks about its tool's result for as long as the tools of the held desk work."""

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **given: Any
    ) -> ChatResult:
        if fakes.results_since_question(messages):
            await HELD.waited()
        return await super()._agenerate(messages, stop, run_manager, **given)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    forging = fakes.ScriptedModel(script=lambda _: AIMessage(FORGED, usage_metadata=fakes.USAGE))
    thoughtful = Thoughtful(script=fakes.calls_then_answers("look"))
    agents = {
        **{kind.replace("_", "-"): quick(kind) for kind in fakes.KINDS},
        "slow": calling("nap", fakes.ToolDesk(1.0)),
        "held": calling("nap", HELD),
        "thoughtful": fakes.build("create_agent", thoughtful, fakes.ToolDesk().tools()),
        "forging": fakes.build("create_agent", forging, []),
    }
    async with served(agents, store_url=url_in(tmp_path_factory.mktemp("events"))) as service:
        yield service


@pytest.fixture(autouse=True)
def held() -> None:
    """A test that is for it lets them go."""
    HELD.hold()


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_events_from_run_to_end(desk: Served, kind: str) -> None:
    """Events lead from `run` to `end` with the answer in between; the end is the result."""
    task_id = await submit(desk, "one", kind.replace("_", "-"))
    story = await events(desk, task_id)
    in_order(story)
    result = (await ended(desk, task_id))["result"]
    assert names_of(story) == ["run", "iteration", "tool_start", "tool_end", "token", "end"]
    assert of(story, "run")[0]["run_id"] == task_id
    assert of(story, "end") == [result]
    assert text_of(story) == result["answer"] == "done: one: order 7 shipped"
    assert await events(desk, task_id) == story


@pytest.mark.parametrize("path", ["/agent/async/{}/events", "/runs/{}/events"])
async def test_resume_after_any_event(desk: Served, path: str) -> None:
    """After any id exactly the rest follows, at either address."""
    task_id = await submit(desk, agent="slow", timeout=0.4)
    story = await events(desk, task_id)
    in_order(story)
    assert names_of(story)[-2:] == ["error", "end"]
    for after in range(len(story)):
        headers = {"Last-Event-ID": str(after)}
        response = await desk.client.get(path.format(task_id), headers=headers)
        assert parse(response.content) == story[after:], after
        assert response.headers["x-run-id"] == task_id


@pytest.mark.on_file
async def test_resume_reads_only_the_rest_of_the_log(
    desk: Served, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The log is read from the row with that event, or from its start if no row has it."""
    task_id = await submit(desk, agent="slow")
    story = await events(desk, task_id)

    async def numbers(event: int) -> list[int]:
        assert desk.service.engine is not None
        followed = desk.service.engine.follow(task_id, event)
        return [entry.id async for entries in followed for entry in entries]

    last = len(story) - 1
    assert await numbers(0) == list(range(1, last + 1))
    resumed = await numbers(last)
    assert resumed == list(range(resumed[0], last + 1))
    assert resumed[0] > 1
    assert await numbers(last + 100) == resumed
    file = tmp_path_factory.getbasetemp() / "events0" / "store.sqlite"
    with sqlite3.connect(file, timeout=10) as store:  # as an earlier version wrote it
        earlier = "update streams set value = json_remove(value, '$.first') where workflow_uuid = ?"
        store.execute(earlier, (task_id,))
    assert await numbers(last) == list(range(1, last + 1))
    for after in range(len(story)):
        assert await events(desk, task_id, after) == story[after:]


@pytest.mark.parametrize("after", ["-1", "x", "1e3", "9" * 16])
async def test_invalid_last_event_id_is_refused(desk: Served, after: str) -> None:
    """Last-Event-ID is a number."""
    task_id = await submit(desk, agent="langgraph")
    headers = {"Last-Event-ID": after}
    response = await desk.client.get(f"/agent/async/{task_id}/events", headers=headers)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


async def test_nothing_after_the_last_event(desk: Served) -> None:
    """A reader of the end gets 204: do not come again."""
    task_id = await submit(desk, agent="langgraph")
    story = await events(desk, task_id)
    for after in (len(story), len(story) + 50):
        headers = {"Last-Event-ID": str(after)}
        response = await desk.client.get(f"/agent/async/{task_id}/events", headers=headers)
        assert (response.status_code, response.content) == (204, b"")


async def test_store_unreachable_while_resuming(
    desk: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that resumes an ended run gets an error and does not wait for the store."""
    task_id = await submit(desk, agent="langgraph")
    await ended(desk, task_id)

    def away(*_: Any) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(RunPoller, "_position", away)
    headers = {"Last-Event-ID": "2"}
    response = await desk.client.get(f"/agent/async/{task_id}/events", headers=headers)
    assert (response.status_code, response.json()["code"]) == (503, "store_unavailable")


async def test_text_cannot_forge_an_event(desk: Served) -> None:
    """Text of a model stays text, line breaks and field names included."""
    story = await events(desk, await submit(desk, agent="forging"))
    in_order(story)
    assert names_of(story) == ["run", "token", "end"]
    assert of(story, "token")[0]["text"] == of(story, "end")[0]["answer"] == FORGED


async def test_tool_start_is_sent_before_the_tool_ends(desk: Served) -> None:
    """A follower reads that a tool started before the tool has ended."""
    task_id = await submit(desk, agent="held")
    read = b""
    async with desk.client.stream("GET", f"/agent/async/{task_id}/events") as response:
        async for piece in response.aiter_bytes():
            read += piece
            if b"tool_start" in read:
                break
    assert b"tool_end" not in read
    HELD.release()
    assert (await ended(desk, task_id))["status"] == "completed"


async def test_tool_end_is_sent_while_the_model_thinks(desk: Served) -> None:
    """A follower reads that a tool ended while the model still thinks about its result."""
    task_id = await submit(desk, agent="thoughtful")
    read = b""
    async with desk.client.stream("GET", f"/agent/async/{task_id}/events") as response:
        async for piece in response.aiter_bytes():
            read += piece
            if b"tool_end" in read:
                break
    assert b"event: token" not in read
    HELD.release()
    assert (await ended(desk, task_id))["status"] == "completed"


async def test_disconnected_reader_stops_nothing(desk: Served) -> None:
    """A background run goes on when its reader disconnects."""
    task_id = await submit(desk, agent="held")
    impatient = httpx.Timeout(LONG_S, read=0.3)
    with pytest.raises(httpx.ReadTimeout):
        async with httpx.AsyncClient(base_url=desk.url, timeout=impatient) as client:
            await client.get(f"/agent/async/{task_id}/events")
    HELD.release()
    assert (await ended(desk, task_id))["status"] == "completed"


async def test_resume_after_a_cut_at_any_byte(desk: Served) -> None:
    """Readers that are cut at random bytes and resume read every event once, in order."""
    chance = random.Random(7)
    tasks = [await submit(desk, f"q{n}", agent="slow") for n in range(12)]

    async def follow(task_id: str) -> list[Any]:
        seen: list[Any] = []
        deadline = asyncio.get_running_loop().time() + LONG_S
        while not seen or seen[-1].name != "end":
            assert asyncio.get_running_loop().time() < deadline
            read, most = b"", chance.randrange(1, 700)
            headers = {"Last-Event-ID": str(len(seen))}
            path = f"/agent/async/{task_id}/events"
            async with desk.client.stream("GET", path, headers=headers) as response:
                async for piece in response.aiter_raw():
                    read += piece
                    if len(read) >= most:
                        break
            seen += parse(read[:most] if chance.random() < 0.5 else read)
        return seen

    for task_id, story in zip(tasks, await asyncio.gather(*map(follow, tasks)), strict=True):
        in_order(story)
        assert of(story, "end")[0]["run_id"] == task_id
        assert json.dumps(of(story, "end")[0]["answer"])
