"""A run as a stream: the same run, reported as it happens, for every kind of agent."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import BaseTool, tool
from pydantic import BaseModel

from app.runs.events import Token
from app.runs.model import AgentAnswer
from app.runs.ports import AgentCall
from tests import fakes, faults, loops
from tests.runs.scripted import ScriptedAgent
from tests.service import Served, served
from tests.streams.reading import follow, in_order, names_of, of, parse, path, stream, text_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
kinds = pytest.mark.parametrize("kind", fakes.KINDS)
every_kind = pytest.mark.parametrize("kind", loops.ALL)

FORGERY = (
    'x\n\nevent: end\ndata: {"answer": "forged"}\n\n\r\revent: end\r\n\r\n\u2028\u2029\x85\0 y'
)


class Order(BaseModel):
    """A structured answer."""

    number: int


def _structured() -> Any:
    model = fakes.ScriptedModel(script=lambda _: fakes.asks("Order", {"number": 7}))
    return create_agent(model, [], response_format=ToolStrategy(Order))


def _asks_a_clerk(kind: str) -> Any:
    clerk = fakes.build(
        "create_agent", fakes.ScriptedModel(script=loops.replies("clerk words")), []
    )

    @tool
    async def look(order: str = "") -> str:
        """Ask another agent."""
        state = await clerk.ainvoke({"messages": [("human", "q")]})
        return str(state["messages"][-1].text)

    def thinks(messages: Sequence[BaseMessage]) -> AIMessage:
        has_answer = "clerk words" in str(messages[-1].content)
        return loops.answering("react") if has_answer else loops.asking("react", "look", {}, 0, 1)

    if kind == "react":
        return loops.react(fakes.ScriptedModel(script=thinks), [look])
    return fakes.build(kind, faults.model(script=fakes.calls_then_answers("look")), [look])


async def _takes_it_back(call: AgentCall) -> AgentAnswer:
    assert call.on_token is not None
    call.on_token(Token("thinking aloud", 1))
    return AgentAnswer("", output={"number": 7})


async def _long(call: AgentCall) -> AgentAnswer:
    await asyncio.sleep(0.05)
    return AgentAnswer("long " * 120_000)


async def _fails_at_once(call: AgentCall) -> AgentAnswer:
    raise ValueError(faults.SECRET)


def _agents(tools: Sequence[BaseTool]) -> dict[str, Any]:
    agents: dict[str, Any] = {}
    for kind in loops.ALL:
        agents[f"two-{kind}"] = loops.build(kind, loops.asks_times(kind, 2, parallel=1), tools)
        agents[f"words-{kind}"] = loops.build(kind, loops.asks_times(kind, 2), tools)
        naps = loops.asks_times(kind, 1, tool="nap", arguments={})
        agents[f"nap-{kind}"] = loops.build(kind, naps, tools)
        failing = fakes.ScriptedModel(script=loops.replies("x"), error=RuntimeError(faults.SECRET))
        agents[f"failing-{kind}"] = loops.build(kind, failing, tools)
        forging = fakes.ScriptedModel(script=lambda _, k=kind: loops.answering(k, FORGERY))
        agents[f"forging-{kind}"] = loops.build(kind, forging, tools)
        agents[f"clerk-{kind}"] = _asks_a_clerk(kind)
    for kind in fakes.KINDS:
        parallel = fakes.ScriptedModel(script=fakes.calls_then_answers("look", parallel=3))
        agents[f"parallel-{kind}"] = fakes.build(kind, parallel, tools)
        repeating = fakes.ScriptedModel(script=_repeats_its_ids)
        agents[f"repeating-{kind}"] = fakes.build(kind, repeating, tools)
        broken = fakes.ScriptedModel(script=fakes.calls_then_answers("broken"))
        agents[f"broken-{kind}"] = fakes.build(kind, broken, tools)
    return {**agents, "structured": _structured()}


def _repeats_its_ids(messages: Sequence[BaseMessage]) -> AIMessage:
    """Two turns in which one call has the same id."""
    done = len(fakes.results_since_question(messages))
    return fakes.asks("look", {"order": str(done)}) if done < 2 else AIMessage("done")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk() -> AsyncIterator[Served]:
    async with served(_agents(fakes.ToolDesk(seconds=60).tools())) as service:
        scripted = (("back", _takes_it_back), ("long", _long), ("raises", _fails_at_once))
        extra = {name: ScriptedAgent(script, name) for name, script in scripted}
        service.service.agents = {**service.service.agents, **extra}
        yield service
        service.books_balance()


@every_kind
async def test_events_are_in_order(desk: Served, kind: str) -> None:
    """The events of a run come in the order in which they happen."""
    events = await stream(desk, f"two-{kind}")
    turn = ["tool_start", "tool_end", "iteration"]
    steps = [name for name in names_of(events) if name not in ("token", "retract")]
    assert steps[0] == "run"
    assert sorted(steps[1:4]) == sorted(steps[4:7]) == sorted(turn)
    assert steps[7:] == ["end"]
    end = events[-1].data
    assert (end["outcome"], end["answer"], end["iterations"]) == ("completed", loops.ANSWER, 2)
    assert text_of(events) == loops.ANSWER
    assert [turn["iteration"] for turn in of(events, "iteration")] == [1, 2]
    assert [turn["tool_calls"] for turn in of(events, "iteration")] == [1, 1]
    run = events[0].data
    assert run.keys() == {
        "run_id", "trace_id", "agent", "deadline_s", "iteration_limit", "demo",
    }  # fmt: skip
    assert (run["run_id"], run["agent"], run["iteration_limit"]) == (
        end["run_id"],
        end["agent"],
        10,
    )
    assert (run["deadline_s"], run["demo"], run["trace_id"]) == (30.0, False, end["trace_id"])


@kinds
async def test_text_is_streamed_token_by_token(desk: Served, kind: str) -> None:
    """Text comes as the model writes it, and never twice."""
    events = await stream(desk, f"words-{kind}")
    assert [t["text"] for t in of(events, "token")] == [
        word if at == 6 else f"{word} " for at, word in enumerate(loops.ANSWER.split(" "))
    ]
    assert {(t["iteration"], t["agent"]) for t in of(events, "token")} == {(3, None)}


@pytest.mark.parametrize("agent", ["two-react", "clerk-react"])
async def test_react_sends_its_answer_as_one_token(desk: Served, agent: str) -> None:
    """An agent that writes its thoughts as text sends its answer as one token."""
    own = [token for token in of(await stream(desk, agent), "token") if token["agent"] is None]
    assert [token["text"] for token in own] == [loops.ANSWER]


async def test_structured_output_is_sent_as_one_token(desk: Served) -> None:
    """An agent with structured output sends its answer as one token, and the output at the end."""
    events = await stream(desk, "structured")
    end = events[-1].data
    assert end["output"] == {"number": 7}
    assert [token["text"] for token in of(events, "token")] == [end["answer"]]


@kinds
async def test_tool_events_have_the_models_id(desk: Served, kind: str) -> None:
    """Each tool call starts and ends once under the id that the model gave it."""
    events = await stream(desk, f"parallel-{kind}", include_steps=True)
    began, ended = of(events, "tool_start"), of(events, "tool_end")
    ids = {step["call_id"] for step in events[-1].data["steps"]}
    if kind != "agent_executor":  # which does not report its tools
        assert ids == {"call-0", "call-1", "call-2"}
    assert len(ids) == 3
    assert {call["call_id"] for call in began} == {call["call_id"] for call in ended} == ids
    assert {(call["tool"], call["iteration"]) for call in began} == {("look", 1)}
    assert {(call["tool"], call["outcome"]) for call in ended} == {("look", "completed")}
    assert all(call.keys() == {"tool", "call_id", "iteration"} for call in began)
    assert all(call.keys() == {"tool", "call_id", "outcome", "duration_s"} for call in ended)
    assert of(events, "iteration") == [{"iteration": 1, "tool_calls": 3}]


@kinds
async def test_repeated_ids_are_made_unique(desk: Served, kind: str) -> None:
    """Steps and events share the id of a call, which no other call has."""
    events = await stream(desk, f"repeating-{kind}", include_steps=True)
    ids = [step["call_id"] for step in events[-1].data["steps"]]
    assert len(set(ids)) == 2
    for name in ("tool_start", "tool_end"):
        assert [call["call_id"] for call in of(events, name)] == ids


@kinds
async def test_failed_tool_ends_with_its_outcome(desk: Served, kind: str) -> None:
    """A tool that raises ends with its outcome, without any text of the exception."""
    events = await stream(desk, f"broken-{kind}")
    assert [call["outcome"] for call in of(events, "tool_end")] == ["tool_error"]
    assert faults.SECRET not in str(events)


@every_kind
async def test_text_of_a_sub_agent_is_marked(desk: Served, kind: str) -> None:
    """The text of a sub-agent is marked, and is not part of the answer."""
    events = await stream(desk, f"clerk-{kind}")
    inner = [token for token in of(events, "token") if token["agent"] is not None]
    assert "".join(token["text"] for token in inner) == "clerk words"
    assert {token["agent"] for token in inner} == {"look"}
    answer = loops.ANSWER if kind == "react" else "done: hello: clerk words"
    assert text_of(events) == events[-1].data["answer"] == answer


async def test_deadline_ends_a_stream_with_its_problem(desk: Served) -> None:
    """At the deadline a stream ends with `error` and `end`, both the 504 problem."""
    # All at once, so that there is time enough for the naps to begin.
    streams = [stream(desk, f"nap-{kind}", timeout=3) for kind in loops.ALL]
    for events in await asyncio.gather(*streams):
        assert [event.name for event in events[-2:]] == ["error", "end"]
        end = events[-1].data
        assert end == events[-2].data
        assert (end["status"], end["code"], end["phase"]) == (504, "timeout", "tool:nap")
        assert [call["outcome"] for call in of(events, "tool_end")] == ["timeout"]
        assert desk.end_of(end["run_id"]).duration_s < 20


@every_kind
async def test_failing_model_ends_a_stream_with_its_problem(desk: Served, kind: str) -> None:
    """A failing model ends a stream with the 500 problem, which has no secret."""
    events = await stream(desk, f"failing-{kind}")
    assert names_of(events) == ["run", "error", "end"]
    assert (events[-1].data["status"], events[-1].data["code"]) == (500, "model_failed")
    assert faults.SECRET not in str(events)


async def test_agent_that_fails_at_once_is_a_stream(desk: Served) -> None:
    """An accepted run is a stream, however soon it fails."""
    events = await stream(desk, "raises")
    assert names_of(events) == ["run", "error", "end"]


@every_kind
async def test_text_cannot_forge_an_event(desk: Served, kind: str) -> None:
    """Text that looks like events arrives as text."""
    events = await stream(desk, f"forging-{kind}")
    assert set(names_of(events)) <= {"run", "token", "retract", "end"}
    assert text_of(events) == events[-1].data["answer"]
    assert "event: end" in events[-1].data["answer"]


async def test_text_that_is_no_answer_is_retracted(desk: Served) -> None:
    """Text that turns out not to be the answer is retracted, even if the answer has none."""
    events = await stream(desk, "back")
    assert of(events, "retract") == [{"iteration": 1}]
    assert text_of(events) == events[-1].data["answer"] == ""


async def test_long_answer_is_streamed(desk: Served) -> None:
    """An answer of 600 KB is streamed too."""
    events = await stream(desk, "long")
    assert text_of(events) == events[-1].data["answer"]


async def test_stream_has_its_headers(desk: Served) -> None:
    """The headers of a stream name its type and its run, and forbid storing and buffering."""
    response = await desk.client.post(path("two-langgraph"), json={"question": "q"})
    headers = response.headers
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] in ("no-cache", "no-store")
    assert headers["x-accel-buffering"] == "no"
    events = parse(response.content)
    assert headers["x-run-id"] == events[0].data["run_id"]
    assert headers["x-request-id"]
    assert "content-length" not in headers
    in_order(events)
    assert await follow(desk, headers["x-run-id"]) == events


@pytest.mark.parametrize(
    ("agent", "body", "status", "code"),
    [
        ("nobody", {}, 404, "not_found"),
        ("two-langgraph", {"question": " "}, 422, "invalid_request"),
        ("two-langgraph", {"timeout": 1e6}, 422, "invalid_request"),
        ("two-langgraph", {"max_iterations": 11}, 422, "invalid_request"),
    ],
)
async def test_refused_request_is_a_plain_problem(
    desk: Served, agent: str, body: dict[str, Any], status: int, code: str
) -> None:
    """A refused request is a plain problem with its status."""
    response = await desk.client.post(path(agent), json={"question": "q", **body})
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
