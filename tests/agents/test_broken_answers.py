"""A broken answer of a model is never taken for a whole one and never starts a tool."""

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk

from app.runs.events import (
    ModelCallFinished,
    ModelCallRetried,
    ModelCallStarted,
    ToolCallStarted,
)
from tests import fakes, faults, loops
from tests import utterances as u
from tests.service import Served, served
from watchkeeper import build_agent

pytestmark = pytest.mark.waits

ROWS = {True: u.STREAMED, False: u.NOT_STREAMED}
# Nothing is wrong with the way in which these came, but they are no answer.
EMPTY = ("nothing at all", "blanks")
FAULTY = {w: {row: rows[row] for row in rows if row not in EMPTY} for w, rows in ROWS.items()}
# What a model of the tutorial's agent, which is offered no tools, can say of these; of an empty
# turn that agent makes a parse error, and goes on.
IN_TEXT = [
    row for row in u.STREAMED if not {"arguments", "whole", "nothing", "blanks"} & {*row.split()}
]
WAYS = [(kind, streamed) for kind in fakes.KINDS for streamed in (True, False)]
ASKS: dict[bool, u.Take] = {
    True: [u.part('{"order": "77"}', "look"), u.end("tool_calls")],
    False: u.whole("", "tool_calls", tool_calls=[u.call()]),
}
ANSWERS: dict[bool, u.Take] = {
    True: [u.word(loops.ANSWER), u.end("stop")],
    False: u.whole(loops.ANSWER),
}


def agent_of(kind: str, model: u.Utters, tools: Any) -> Any:
    """An agent of that kind that streams if its model does."""
    classic = kind in ("agent_executor", "react")
    return loops.build(
        kind, model, tools, **({"stream_runnable": model.streaming} if classic else {})
    )


async def refused(service: Served, name: str) -> str:
    """Why an agent's broken answer was not refused as it should have been; empty if it was."""
    before = len(service.facts)
    response = await service.ask(agent=name)
    body = response.json()
    facts = service.facts[before:]
    calls = [fact for fact in facts if isinstance(fact, ModelCallStarted)]
    tools = [fact for fact in facts if isinstance(fact, ToolCallStarted)]
    if response.status_code != 500 or (body["code"], body["retryable"]) != ("model_failed", True):
        return f"{response.status_code} {response.text}"
    if faults.SECRET in response.text:
        return "a secret left"
    return f"{len(tools)} tools ran" if tools else "" if len(calls) == 1 else "asked again"


@pytest.mark.parametrize("provider", ["openai", "somebody"])
@pytest.mark.parametrize(("kind", "streamed"), [*WAYS, ("react", True), ("react", False)])
async def test_broken_answer_ends_the_run(kind: str, streamed: bool, provider: str) -> None:
    """In an agent that users built, every broken answer ends the run before a tool runs."""
    desk = fakes.ToolDesk()
    agents, names = {}, {}
    for number, (row, take) in enumerate(ROWS[streamed].items()):
        says_why = provider == "openai" or ("finish" not in row and "before" not in row)
        if says_why and (kind != "react" or row in IN_TEXT):
            model = u.Utters(takes=[take], streaming=streamed, provider=provider)
            names[row] = f"a{number}"
            agents[names[row]] = agent_of(kind, model, desk.tools())
    async with served(agents) as service:
        wrong = {row: why for row, name in names.items() if (why := await refused(service, name))}
        service.books_balance()
    assert wrong == {}
    assert desk.started == []


@pytest.mark.parametrize(("kind", "streamed"), WAYS)
async def test_broken_answer_after_a_turn_runs_no_tool(kind: str, streamed: bool) -> None:
    """A broken answer after a whole turn runs no further tool and becomes no answer."""
    desk = fakes.ToolDesk()
    take = ROWS[streamed]["malformed arguments"]
    model = u.Utters(takes=[ASKS[streamed], take], streaming=streamed)
    async with served({"a": agent_of(kind, model, desk.tools())}) as service:
        response = await service.ask()
    body = response.json()
    assert (response.status_code, body["code"]) == (500, "model_failed")
    assert (body["iterations"], body["tool_calls"]) == (1, 1)
    assert desk.started == ["look"]
    outcomes = [fact.outcome for fact in service.facts_of(ModelCallFinished)]
    assert outcomes == ["completed", "incomplete"]


@pytest.mark.parametrize(("kind", "streamed"), WAYS)
async def test_broken_last_answer_is_refused(kind: str, streamed: bool) -> None:
    """The last answer at the limit follows the same rule: half an answer is none."""
    model = u.Utters(takes=[ASKS[streamed], ROWS[streamed]["no finish reason"]], streaming=streamed)
    agent = agent_of(kind, model, fakes.ToolDesk().tools())
    async with served({"a": agent}, max_iterations=1) as service:
        response = await service.ask()
    assert "Your order" not in response.text
    assert (response.status_code, response.json().get("code")) == (500, "model_failed")


WHOLE: dict[str, list[AIMessageChunk]] = {
    "by index": [
        u.part("", "look"), u.part("", "look", 1), u.part('{"order":'),
        u.part('{"order":', index=1), u.part('"1"}'), u.part('"2"}', index=1), u.end("tool_calls"),
    ],
    "one in each chunk, without an index": [
        u.part('{"order": "1"}', "look", None), u.part('{"order": "2"}', "look", None),
        u.end("stop"),
    ],
    "no arguments": [u.part("", "look"), u.part("", "look", 1), u.end("tool_calls")],
    "blanks around": [
        u.part(' {"order": "1"}\n', "look"), u.part("{}", "look", 1), u.end("tool_calls"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_whole_answers_pass(kind: str) -> None:
    """Whole answers pass, however their provider cuts them into chunks."""
    desk = fakes.ToolDesk()
    agents, names = {}, {row: f"a{n}" for n, row in enumerate(WHOLE)}
    for row, chunks in WHOLE.items():
        takes = [chunks, ANSWERS[True]]
        model = u.Utters(takes=takes, streaming=True, provider="somebody")
        agents[names[row]] = agent_of(kind, model, desk.tools())
    async with served(agents) as service:
        body = {row: (await service.ask(agent=name)).json() for row, name in names.items()}
    assert {row: run.get("outcome") for row, run in body.items()} == dict.fromkeys(
        WHOLE, "completed"
    )
    assert {row: run["tool_calls"] for row, run in body.items()} == dict.fromkeys(WHOLE, 2)


@pytest.mark.parametrize("streamed", [True, False])
async def test_builder_retries_a_broken_answer(streamed: bool) -> None:
    """An agent of our builder asks again, tells readers to drop the text, and runs tools once."""
    desk = fakes.ToolDesk()
    agents, names = {}, {row: f"a{n}" for n, row in enumerate(FAULTY[streamed])}
    for row, take in FAULTY[streamed].items():
        takes = [take, ASKS[streamed], take, ANSWERS[streamed]]
        model = u.Utters(takes=takes, streaming=streamed)
        agents[names[row]] = build_agent(model, desk.tools())
    async with served(agents) as service:
        responses = await asyncio.gather(*(service.ask(agent=name) for name in names.values()))
        service.books_balance()
    outcomes = [response.json().get("outcome") for response in responses]
    assert dict(zip(names, outcomes, strict=True)) == dict.fromkeys(names, "completed")
    for response in responses:
        body = response.json()
        assert (body["answer"], body["iterations"], body["tool_calls"]) == (loops.ANSWER, 1, 1)
        facts = [f for f in service.facts if f.run_id == body["run_id"]]
        assert [f.iteration for f in facts if isinstance(f, ModelCallRetried)] == [1, 2]
    assert desk.started == ["look"] * len(names)


@pytest.mark.parametrize("attempts", [1, 2, 3])
@pytest.mark.parametrize("streamed", [True, False])
async def test_builder_gives_up_after_its_attempts(streamed: bool, attempts: int) -> None:
    """A permanent fault ends an agent of our builder as model_failed, after its attempts."""
    desk = fakes.ToolDesk()
    agents, names = {}, {row: f"a{n}" for n, row in enumerate(FAULTY[streamed])}
    for row, take in FAULTY[streamed].items():
        model = u.Utters(takes=[take], streaming=streamed)
        agents[names[row]] = build_agent(model, desk.tools(), attempts=attempts)
    async with served(agents) as service:
        responses = await asyncio.gather(*(service.ask(agent=name) for name in names.values()))
    codes = [response.json().get("code") for response in responses]
    assert dict(zip(names, codes, strict=True)) == dict.fromkeys(names, "model_failed")
    calls = [fact.agent for fact in service.facts_of(ModelCallStarted)]
    assert {row: calls.count(name) for row, name in names.items()} == dict.fromkeys(names, attempts)
    assert desk.started == []


async def test_builder_refuses_an_empty_answer() -> None:
    """An empty answer is refused in an agent of our builder, too."""
    agent = build_agent(u.Utters(takes=[u.whole("")]), [])
    async with served({"a": agent}) as service:
        response = await service.ask()
    assert (response.status_code, response.json().get("code")) == (500, "model_failed")


@pytest.mark.parametrize("streamed", [True, False])
async def test_builder_retries_the_last_answer(streamed: bool) -> None:
    """An agent of our builder retries a broken last answer at the limit, too."""
    takes = [ASKS[streamed], ROWS[streamed]["no finish reason"], ANSWERS[streamed]]
    model = u.Utters(takes=takes, streaming=streamed)
    agent = build_agent(model, fakes.ToolDesk().tools(), max_iterations=1)
    async with served({"a": agent}) as service:
        body = (await service.ask()).json()
    assert (body["outcome"], body.get("answer")) == ("iteration_limit", loops.ANSWER)


async def test_text_in_blocks() -> None:
    """An answer in content blocks is their text, in every kind."""
    blocks = [{"type": "text", "text": "all is "}, {"type": "text", "text": "well"}]
    agents = {}
    for kind in fakes.KINDS:
        take = AIMessage(content=list(blocks), response_metadata={"finish_reason": "stop"})
        agents[kind] = agent_of(kind, u.Utters(takes=[take]), [])
    async with served(agents) as service:
        body = {kind: (await service.ask(agent=kind)).json()["answer"] for kind in agents}
    assert body == dict.fromkeys(fakes.KINDS, "all is well")
