"""A cut stream resumes where it was, without gap or repeat."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.runs.events import StreamOpened, Token
from app.runs.model import AgentAnswer
from app.runs.ports import AgentCall
from tests import fakes, loops, wire
from tests.runs.scripted import ScriptedAgent
from tests.service import Served, served, until
from tests.streams.reading import (
    SOAK,
    StreamEvent,
    follow,
    in_order,
    names_of,
    of,
    parse,
    path,
    post,
    stream,
    text_of,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
STREAMS = 1_000 if SOAK else 100
CONTINUE = "on_disconnect=continue"
# Its naps last until they are released.
TOOLS = fakes.ToolDesk(seconds=60)


async def _talks(call: AgentCall) -> AgentAnswer:
    for number in range(40):
        if call.on_token is not None:
            call.on_token(Token(f"w{number} ", 1))
        await asyncio.sleep(0.003)
    return AgentAnswer("".join(f"w{number} " for number in range(40)))


async def _talks_much(call: AgentCall) -> AgentAnswer:
    for _ in range(9_000):
        assert call.on_token is not None
        call.on_token(Token("x", 1))
    await asyncio.sleep(0.3)
    return AgentAnswer("x" * 9_000)


async def _says_one_long_thing(call: AgentCall) -> AgentAnswer:
    assert call.on_token is not None
    call.on_token(Token("x" * 600_000, 1))
    await asyncio.sleep(1.0)
    return AgentAnswer("x" * 600_000)


async def _fails(call: AgentCall) -> AgentAnswer:
    await asyncio.sleep(0)
    raise ValueError("x")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk() -> AsyncIterator[Served]:
    agents: dict[str, Any] = {}
    for kind in fakes.KINDS:
        model = fakes.ScriptedModel(script=fakes.calls_then_answers("look", turns=2), delay_s=0.01)
        agents[kind] = fakes.build(kind, model, TOOLS.tools())
        naps = loops.asks_times(kind, 1, tool="nap", arguments={})
        agents[f"nap-{kind}"] = fakes.build(kind, naps, TOOLS.tools())
    scripts = {
        "talks": _talks,
        "much": _talks_much,
        "one": _says_one_long_thing,
        "fails": _fails,
    }
    async with served(agents, max_queued_runs=200) as service:
        own = {name: ScriptedAgent(script, name) for name, script in scripts.items()}
        service.service.agents = {**service.service.agents, **own}
        yield service
        await until(lambda: not service.service.runner.in_flight)
        service.books_balance()


@asynccontextmanager
async def fresh(desk: Served) -> AsyncIterator[Served]:
    """The service, with connections of one's own: one kept for long may close as it is reused."""
    # No certificates are looked up, which takes longer than the requests.
    async with httpx.AsyncClient(base_url=desk.url, timeout=30, verify=False) as client:
        yield replace(desk, client=client)


async def cut(desk: Served, agent: str, after_bytes: int) -> tuple[str, bytes]:
    """Read so many bytes of a stream's body, then break off; gives the run's id and the bytes."""
    address = path(agent, CONTINUE)
    async with (
        fresh(desk) as own,
        own.client.stream("POST", address, json={"question": "hello"}) as response,
    ):
        read = b""
        async for part in response.aiter_raw():
            read += part
            if len(read) >= after_bytes:
                break
        return response.headers["x-run-id"], read[:after_bytes]


async def test_resume_after_a_cut_anywhere(desk: Served) -> None:
    """Streams cut at any byte and resumed give the full list, without gap or repeat."""
    chance = random.Random(9)
    at_once = asyncio.Semaphore(50)  # the last 100 that finished can be resumed

    async def one(number: int) -> None:
        agent = (*fakes.KINDS, "talks")[number % 4]
        async with at_once, fresh(desk) as own:
            run_id, read = await cut(desk, agent, chance.randrange(1, 2_500))
            first = parse(read)
            rest = list[StreamEvent]()
            if not first or first[-1].name != "end":
                rest = await follow(own, run_id, first[-1].id if first else None)
            whole = await follow(own, run_id)
        in_order(whole)
        assert [*first, *rest] == whole
        assert whole[-1].data["outcome"] == "completed"

    await asyncio.gather(*(one(number) for number in range(STREAMS)))


async def test_resume_twice_while_the_run_goes_on(desk: Served) -> None:
    """Readers that come and go during the run each get their part, and no other."""
    run_id, read = await cut(desk, "talks", 700)
    seen = parse(read)
    while not seen or seen[-1].name != "end":
        after = str(seen[-1].id if seen else 0)
        got = b""
        async with desk.client.stream(
            "GET", f"/runs/{run_id}/events", headers={"Last-Event-ID": after}
        ) as response:
            async for part in response.aiter_raw():
                got += part
                if len(got) > 800:
                    break
        seen += parse(got)
    in_order(seen)


async def test_gap_is_reported_once(desk: Served) -> None:
    """A reader that asks for evicted events gets the gap once, and then the rest."""
    run_id = (await desk.client.post(path("much"), json={"question": "q"})).headers["x-run-id"]
    events = await follow(desk, run_id, 10)
    assert names_of(events[:2]) == ["gap", "token"]
    assert names_of(events).count("gap") == 1
    assert events[0].data == {"after": 10, "next": events[1].id}
    ids = [event.id for event in events[1:]]
    assert ids == list(range(ids[0], ids[-1] + 1))
    assert events[-1].name == "end"
    assert await follow(desk, run_id, events[0].id) == events[1:]


async def test_event_beyond_the_bound_floods_no_reader(desk: Served) -> None:
    """A reader of an event beyond the ring's bound gets no flood of comments meanwhile."""
    response = await desk.client.post(path("one"), json={"question": "q"})
    assert response.content.count(b"\n: ") + response.content.startswith(b":") <= 3
    assert parse(response.content)[-1].name == "end"


async def test_unknown_run_is_404(desk: Served) -> None:
    """The events of an unknown run are 404."""
    for run_id in ("nobody", "5b9a2f0e-0000-4000-8000-000000000000"):
        response = await desk.client.get(f"/runs/{run_id}/events")
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("given", ["x", "-1", "1.5", "1" * 30])
async def test_invalid_last_event_id_is_refused(desk: Served, given: str) -> None:
    """A Last-Event-ID that is no id is refused."""
    run_id = (await stream(desk, "talks"))[0].data["run_id"]
    response = await desk.client.get(f"/runs/{run_id}/events", headers={"Last-Event-ID": given})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("beyond", [0, 1, 1_000_000])
async def test_resume_after_the_end_ends(desk: Served, beyond: int) -> None:
    """A reader that asks again after `end`, as browsers do, gets an answer that ends."""
    events = await stream(desk, "talks")
    address = f"/runs/{events[0].data['run_id']}/events"
    headers = {"Last-Event-ID": str(events[-1].id + beyond)}
    read = 0
    async with asyncio.timeout(60):
        async with desk.client.stream("GET", address, headers=headers) as response:
            async for part in response.aiter_raw():
                read += len(part)
                assert read < 5_000, "flooded"


async def test_resume_ahead_of_the_run_floods_no_reader(desk: Served) -> None:
    """A reader that asks for future events gets no flood when the run ends."""
    run_id, _ = await cut(desk, "talks", 10)
    read = 0
    headers = {"Last-Event-ID": "5000"}
    async with asyncio.timeout(60):
        async with desk.client.stream("GET", f"/runs/{run_id}/events", headers=headers) as got:
            async for part in got.aiter_raw():
                read += len(part)
                assert read < 5_000, "flooded"


async def test_every_reader_gets_every_event(desk: Served) -> None:
    """Several readers at once each get every event; one that disconnects changes nothing."""
    run_id, _ = await cut(desk, "talks", 10)
    leaving = asyncio.create_task(follow(desk, run_id))
    reading = [asyncio.create_task(follow(desk, run_id)) for _ in range(5)]
    await asyncio.sleep(0.03)
    leaving.cancel()
    every = await asyncio.gather(*reading)
    in_order(every[0])
    assert all(events == every[0] for events in every)
    assert every[0][-1].data["outcome"] == "completed"


async def followed(desk: Served, run_id: str, tools: fakes.ToolDesk) -> list[StreamEvent]:
    """The events of a run that goes on, as all naps do, once somebody follows it."""
    following = asyncio.create_task(follow(desk, run_id))
    await until(lambda: [f for f in desk.facts_of(StreamOpened) if f.run_id == run_id])
    while not following.done():
        tools.release()
        await asyncio.sleep(0.01)
    return await following


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_sync_run_can_be_followed(desk: Served, kind: str) -> None:
    """A run whose caller waits for its answer can be followed, and ends with the same answer."""
    asking = asyncio.create_task(desk.ask(agent=f"nap-{kind}"))
    run_id = (await desk.run_of(f"nap-{kind}")).id
    events = await followed(desk, run_id, TOOLS)
    in_order(events)
    assert events[-1].data == (await asking).json()
    assert {"tool_start", "tool_end", "iteration"} <= set(names_of(events))
    assert text_of(events) in ("", loops.ANSWER)


async def test_queued_run_can_be_followed() -> None:
    """A queued run can be followed from before it starts."""
    tools = fakes.ToolDesk(seconds=60)
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("nap"))
    agents = {"a": fakes.build("langgraph", model, tools.tools())}
    async with served(agents, max_running_runs=1) as desk:
        first = asyncio.create_task(stream(desk))
        await desk.busy(running=1)
        second = asyncio.create_task(stream(desk))
        await desk.busy(waiting=1)
        run_id = list(desk.service.runner.in_flight)[-1]
        events = await followed(desk, run_id, tools)
        in_order(events)
        assert await second == events
        await first


async def test_reader_of_an_evicted_run_does_not_wait(desk: Served) -> None:
    """A reader of a run that left the history does not wait for events that never come."""
    first = (await desk.ask(agent="fails")).json()["run_id"]
    completed = (await stream(desk, "talks"))[0].data["run_id"]
    for _ in range(101):
        await desk.ask(agent="fails")
    for run_id in (completed, first):
        async with asyncio.timeout(60):
            response = await desk.client.get(f"/runs/{run_id}/events")
        assert response.status_code == 404 or parse(response.content)[-1].name == "end"


async def test_queued_run_with_continue_outlives_its_reader(desk: Served) -> None:
    """With `continue`, a run whose reader left before it could read still finishes."""
    before = set(desk.service.runner.finished)
    async with wire.connection(desk.url) as (_, writer):
        writer.write(post("talks", CONTINUE))
        await desk.run_of("talks")
    await desk.idle()
    (run_id,) = set(desk.service.runner.finished) - before
    events = await follow(desk, run_id)
    assert (events[-1].data["outcome"], len(of(events, "run"))) == ("completed", 1)
