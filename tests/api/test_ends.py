"""Every end of a run is reported alike, in every mode and by every signal.

Agents of the core's own port stand in the places of graphs, so that they can end with anything.
"""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field, SecretStr

from app.runs.events import IterationLimitReached
from app.runs.model import AgentAnswer, Limit, Outcome
from app.runs.ports import AgentCall
from tests import fakes, faults
from tests.runs.scripted import ScriptedAgent
from tests.runs.test_plain import Raises, Recurses
from tests.runs.test_rendering import NOON, Point, Refuses, endless, holding_itself, nested
from tests.streams.reading import of, parse
from tests.telemetry.test_agreement import agree
from tests.telemetry.watched import Watched, root_of, watched

pytestmark = pytest.mark.asyncio(loop_scope="module")
MODES = ("sync", "stream", "background")
HALF = "\udcaf"

# What agents answer with, and what of it is sent; None where the run fails.
OUTPUTS: dict[str, tuple[Callable[[], Any], Any]] = {
    "bytes": (lambda: {"png": b"\x89PNG\xff"}, {"png": "iVBOR/8="}),
    "cycle": (holding_itself, {"a": 1, "me": ["…"]}),
    "huge": (lambda: [10**5_000], ["1" + "0" * 5_000]),
    "odd": (lambda: {1: {2}, "t": NOON, HALF: float("nan")},
            {"1": [2], "t": "2026-03-01T12:00:00Z", "?": "nan"}),
    "secret": (lambda: Point(1, SecretStr("hunter2")), {"x": 1, "key": "**********"}),
    "endless": (endless, "<generator>"),
    "raises": (Refuses, None),
    "exits": (lambda: [Raises(SystemExit(3))], None),
    "recurses": (Recurses, None),
    "large": (lambda: "x" * 50_000_000, None),
    "deep": (lambda: nested(100_000), None),
}  # fmt: skip


def ends_with(make: Callable[[], Any], **marks: Any) -> Callable[[AgentCall], Any]:
    """A script whose answer has this output."""

    async def script(call: AgentCall) -> AgentAnswer:
        if limit := marks.get("limit"):
            about: Any = {"run_id": call.run_id, "agent": "limited", "at": time.monotonic()}
            call.emit(IterationLimitReached(**about, iteration_limit=10, limit=limit))
        return AgentAnswer(f"done{HALF}", output=make(), **marks)

    return script


class Picture(BaseModel):
    """The structured output of an agent."""

    png: bytes = Field(default_factory=lambda: b"\x89PNG\xff")
    other: Any = None


# The name of the model below, as it is reported.
MODEL = "m?" + "x" * 197 + "…"


class Odd(fakes.ScriptedModel):
    """A model with names that nobody should have."""

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(
            ls_provider=f"p{HALF}\n", ls_model_type="chat", ls_model_name="m\0" + "x" * 5_000
        )


@tool
def look(x: Any = "") -> str:
    """Look, and say what UTF-8 has no form for."""
    return f"seen {HALF}\0"


def asking(*calls: dict[str, Any]) -> Any:
    """An agent whose model, of odd names, asks for these calls and then answers."""

    def script(messages: Any) -> AIMessage:
        if fakes.results_since_question(messages):
            return AIMessage(f"ok {HALF}")
        return AIMessage("", tool_calls=[{"name": "look", "type": "tool_call", **c} for c in calls])

    return create_agent(Odd(script=script), [look])


REAL: dict[str, Callable[[], Any]] = {
    "picture": lambda: create_agent(
        fakes.ScriptedModel(script=lambda _: fakes.asks("Picture", {})),
        [],
        response_format=ToolStrategy(Picture),
    ),
    "ids": lambda: asking(
        {"id": f"i{HALF}", "args": {}}, {"id": "x" * 5_000, "args": {}}, {"id": "n\0", "args": {}}
    ),
    "no-ids": lambda: asking({"id": None, "args": {}}, {"id": "", "args": {}}),
    "arguments": lambda: asking(
        {"id": "1", "args": {"x": {"half": HALF, "nan": float("nan"), "deep": nested(200)}}}
    ),
}
REAL["no-ids-again"] = REAL["no-ids"]
TOLD: dict[str, dict[str, Any]] = {
    "limited": {"limit": Limit.MODEL_CALLS},
    "refused": {"refused": True},
}


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """The way in which agents are asked."""
    return str(request.param)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def signals(mode: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    agents = {name: faults.graph_of(len) for name in (*OUTPUTS, *TOLD)}
    agents |= {name: make() for name, make in REAL.items()}
    store = tmp_path_factory.mktemp("ends") / "store.sqlite"
    content = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}
    async with watched(agents, store_url=f"sqlite:///{store}", variables=content) as service:
        served: Any = service.desk.service.agents
        for name in (*OUTPUTS, *TOLD):
            make = OUTPUTS.get(name, (dict, None))[0]
            served[name] = ScriptedAgent(ends_with(make, **TOLD.get(name, {})), name)
        yield service
        service.desk.books_balance()
        samples = await service.scrape()
        assert samples.nonzero("agent_telemetry_errors_total") == {}
        assert samples.nonzero("agent_telemetry_spans_dropped_total") == {}
        assert service.log.of("unhandled_error") == service.log.of("request_failed") == []


@dataclass
class Ended:
    """How a run ended, whichever way it was asked for."""

    run_id: str
    body: dict[str, Any]
    response: httpx.Response | None


async def ask(signals: Watched, name: str, mode: str, key: str | None = None) -> Ended:
    """Ask an agent in one of three ways, and wait for the end."""
    client, payload = signals.desk.client, {"question": "q", "include_steps": True}
    suffix = {"sync": "", "stream": "/stream", "background": "/async"}[mode]
    headers = {} if key is None else {"Idempotency-Key": key}
    response = await client.post(f"/agents/{name}{suffix}", json=payload, headers=headers)
    run_id = response.headers["x-run-id"]
    if mode == "sync":
        return Ended(run_id, response.json(), response)
    if mode == "stream":
        return Ended(run_id, of(parse(response.content), "end")[0], None)
    task = (await client.get(f"/agent/async/{run_id}", params={"wait": 30})).json()
    assert task["attempts"] == 1
    return Ended(run_id, task["result"] or task["error"], None)


@pytest.mark.parametrize("name", OUTPUTS)
async def test_output_is_plain_values_or_fails(signals: Watched, name: str, mode: str) -> None:
    """The output is sent as plain values, or the run fails alike everywhere."""
    form = OUTPUTS[name][1]
    ended = await ask(signals, name, mode)
    outcome = Outcome.COMPLETED if form is not None else Outcome.FAILED
    if form is not None:
        assert (ended.body["output"], ended.body["answer"]) == (form, "done?")
    else:
        assert (ended.body["code"], ended.body["retryable"]) == ("agent_failed", False)
        line = await signals.log.one("run_finished", run_id=ended.run_id)
        assert line["error_type"]
    error = None if form is not None else "agent_failed"
    args = (name, ended.run_id, ended.response, outcome, (0, 0))
    await agree(signals, *args, error=error, mode=mode)


async def test_bytes_of_an_output_are_text(signals: Watched, mode: str) -> None:
    """Bytes in a model's fields become text, as any value that JSON cannot express."""
    ended = await ask(signals, "picture", mode)
    assert ended.body["output"] == {"png": "iVBOR/8=", "other": None}
    args = ("picture", ended.run_id, ended.response, Outcome.COMPLETED, (0, 0))
    await agree(signals, *args, mode=mode)


@pytest.mark.parametrize(("name", "calls"), [("ids", 3), ("no-ids", 2), ("arguments", 1)])
async def test_calls_of_any_form_are_reported(
    signals: Watched, name: str, calls: int, mode: str
) -> None:
    """Ids, names, arguments and results of any kind are reported; each call has its own id."""
    ended = await ask(signals, name, mode)
    assert (ended.body["outcome"], ended.body["answer"]) == ("completed", "ok ?")
    steps = ended.body["steps"]
    assert [step["result"] for step in steps] == ["seen ?\0"] * calls
    ids = {step["call_id"] for step in steps}
    assert len(ids) == calls
    assert all(0 < len(i) <= 200 and i.isprintable() for i in ids)
    args = (name, ended.run_id, ended.response, Outcome.COMPLETED, (1, calls))
    await agree(signals, *args, mode=mode)
    samples = await signals.scrape()
    called = samples.all("agent_llm_call_duration_seconds_count", agent=name)
    assert {s.labels["provider"] for s in called} == {"p??"}
    assert {s.labels["model"] for s in called} == {MODEL}
    assert f"chat {MODEL}" in {span.name for span in await signals.trace_of(ended.run_id)}


async def test_events_have_the_ids_of_the_steps(signals: Watched) -> None:
    """Calls that came without an id have one that start, end and step share."""
    payload = {"question": "q", "include_steps": True}
    response = await signals.desk.client.post("/agents/no-ids-again/stream", json=payload)
    events = parse(response.content)
    ids = [[event["call_id"] for event in of(events, name)] for name in ("tool_start", "tool_end")]
    steps = [step["call_id"] for step in of(events, "end")[0]["steps"]]
    assert sorted(ids[0]) == sorted(ids[1]) == sorted(steps)
    assert all(steps)


async def test_limit_is_reported_everywhere(signals: Watched, mode: str) -> None:
    """The answer, the line, the span and the record name the limit that stopped the run."""
    ended = await ask(signals, "limited", mode)
    line = await signals.log.one("run_finished", run_id=ended.run_id)
    reached = await signals.log.one("iteration_limit_reached", run_id=ended.run_id)
    assert (reached["limit"], reached["iteration_limit"]) == ("model_calls", 10)
    span = root_of(await signals.trace_of(ended.run_id), ended.run_id)
    record = (await signals.desk.client.get(f"/runs/{ended.run_id}")).json()
    for source in (ended.body, line, record):
        assert (source["outcome"], source["limit"], source["refused"]) == (
            "iteration_limit", "model_calls", False,
        )  # fmt: skip
    assert span.attributes["agent.run.limit"] == "model_calls"
    assert "agent.run.refused" not in span.attributes


async def test_refusal_is_reported_everywhere(signals: Watched, mode: str) -> None:
    """A refusal is a completed run that the answer, the line, the span and the record mark."""
    refused = "agent_answers_refused_total"
    before = (await signals.scrape()).total(refused, agent="refused")
    ended, again = [await ask(signals, "refused", mode, key="refused") for _ in range(2)]
    assert again.body == ended.body
    line = await signals.log.one("run_finished", run_id=ended.run_id)
    span = root_of(await signals.trace_of(ended.run_id), ended.run_id)
    record = (await signals.desk.client.get(f"/runs/{ended.run_id}")).json()
    for source in (ended.body, line, record):
        assert (source["outcome"], source["limit"], source["refused"]) == ("completed", None, True)
    assert span.attributes["agent.run.refused"] is True
    assert "agent.run.limit" not in span.attributes
    samples = await signals.scrape()
    assert (before, samples.total(refused, agent="refused")) == (0, 1)
