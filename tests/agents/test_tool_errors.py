"""A tool that raises ends neither a run, of whatever kind, nor its sibling calls."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import BaseTool, Tool, ToolException, tool
from pydantic import BaseModel, ValidationError, field_validator

from app.agents.handler.tool_guards import handled
from app.runs.events import (
    Event,
    ToolCallFinished,
    ToolCallRejected,
    ToolCallStarted,
)
from app.runs.model import CallOutcome
from tests import fakes, faults, loops
from tests.service import served

pytestmark = pytest.mark.waits

Turn = tuple[str, dict[str, Any]]


class Facts(list[Any]):
    """What is known of one run."""

    def of(self, kind: type[Event]) -> list[Any]:
        """Those of one type."""
        return [fact for fact in self if isinstance(fact, kind)]


def asks_once(kind: str, *calls: Turn) -> fakes.ScriptedModel:
    """A model that asks for these calls in its first turn, then answers."""
    turns = iter(range(1_000))
    if kind == "react":
        [(name, given)] = calls
        action_input = "".join(map(str, given.values()))
        first = AIMessage(f"\nAction: {name}\nAction Input: {action_input}")
    else:
        asked: Any = [
            {"name": name, "args": given, "id": f"call-{n}", "type": "tool_call"}
            for n, (name, given) in enumerate(calls)
        ]
        first = AIMessage("", tool_calls=asked)
    return fakes.ScriptedModel(script=lambda _: loops.answering(kind) if next(turns) else first)


async def run_each(
    kind: str, tools: Mapping[str, Sequence[BaseTool]], *calls: Turn
) -> AsyncIterator[tuple[str, dict[str, Any], str, Facts]]:
    """One run over each set of tools: its name, what came of it, what the model read, its facts."""
    models = {name: asks_once(kind, *calls) for name in tools}
    names = {name: f"a{number}" for number, name in enumerate(tools)}
    agents = {names[n]: loops.build(kind, model, tools[n]) for n, model in models.items()}
    async with served(agents) as service:
        for name, model in models.items():
            response = await service.ask(agent=names[name], include_steps=True, timeout=10.0)
            assert response.status_code == 200, response.text
            body = response.json()
            assert (body["outcome"], body["answer"]) == ("completed", loops.ANSWER)
            assert body["iterations"] == 1
            facts = Facts(fact for fact in service.facts if fact.run_id == body["run_id"])
            yield name, body, _read(model.asked[-1], kind), facts
        service.books_balance()


async def run_once(
    kind: str, tools: Sequence[BaseTool], *calls: Turn
) -> tuple[dict[str, Any], str, Facts]:
    """One run that asks for these calls: what came of it, what the model read, its facts."""
    [(_, body, read, facts)] = [run async for run in run_each(kind, {"a": tools}, *calls)]
    return body, read, facts


def _read(messages: Sequence[BaseMessage], kind: str) -> str:
    """What the model read of its tool calls."""
    if kind == "react":
        return str(messages[0].text).rpartition("\nObservation: ")[2]
    return "\n".join(str(m.text) for m in messages if m.type == "tool")


def looks(raised: BaseException, flavour: str) -> BaseTool:
    """A tool `look` that raises, written in one of the ways that tools are written in."""

    async def on_the_loop(order: str = "1") -> str:
        """Raise."""
        raise raised

    def on_a_thread(order: str = "1") -> str:
        """Raise."""
        raise raised

    class ByHandSync(BaseTool):
        name: str = "look"
        description: str = "Raise."

        def _run(self, order: str = "1") -> str:
            raise raised

    class ByHandAsync(ByHandSync):
        async def _arun(self, order: str = "1") -> str:
            raise raised

    makers: dict[str, Callable[[], BaseTool]] = {
        "async": lambda: tool("look")(on_the_loop),
        "sync": lambda: tool("look")(on_a_thread),
        "by hand, sync": ByHandSync,
        "by hand, async": ByHandAsync,
        "classic": lambda: Tool("look", on_a_thread, "Raise."),
    }
    return makers[flavour]()


FLAVOURS = ("async", "sync", "by hand, sync", "by hand, async", "classic")


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_slow_sibling_finishes(kind: str) -> None:
    """A tool that raises lets slow siblings finish and the run go on."""
    desk = fakes.ToolDesk(seconds=0.1)
    calls: list[Turn] = [("nap", {}), ("broken", {}), ("block", {})]
    body, read, _ = await run_once(kind, desk.tools(), *calls)
    assert sorted(desk.finished) == ["block", "nap"]
    assert desk.cancelled == []
    outcomes = {step["tool"]: step["outcome"] for step in body["steps"]}
    assert outcomes == {"nap": "completed", "broken": "tool_error", "block": "completed"}
    assert sorted(read.split("\n")) == ["Tool broken failed: ValueError", "blocked", "slept"]
    assert faults.SECRET not in json.dumps(body)


@pytest.mark.parametrize("kind", loops.ALL)
async def test_model_reads_name_and_type(kind: str) -> None:
    """The model reads the tool's name and the exception's type, and none of its text."""
    tools = {flavour: [looks(KeyError(faults.SECRET), flavour)] for flavour in FLAVOURS}
    async for flavour, body, read, facts in run_each(kind, tools, ("look", {"order": "1"})):
        assert read.startswith("Tool look failed: KeyError"), flavour
        assert faults.SECRET not in read, flavour
        [step] = body["steps"]
        result = (step["outcome"], step["result"])
        assert result == ("tool_error", "Tool look failed: KeyError"), flavour
        [finished] = facts.of(ToolCallFinished)
        assert isinstance(finished.error, KeyError), flavour
        assert facts.of(ToolCallRejected) == [], flavour


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_model_reads_the_text_of_a_tool_exception(kind: str) -> None:
    """The text of a ToolException is for the model, so the model reads it."""
    tools = {flavour: [looks(ToolException("try order 7"), flavour)] for flavour in FLAVOURS}
    async for flavour, body, read, _ in run_each(kind, tools, ("look", {"order": "1"})):
        assert read == "Tool look failed: ToolException: try order 7", flavour
        assert body["steps"][0]["outcome"] == "tool_error", flavour


OWN: dict[str, tuple[Any, str]] = {
    "true": (True, "try order 7"),
    "words": ("ask the desk", "ask the desk"),
    "function": (lambda raised: f"so: {raised}", "so: try order 7"),
}


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_own_handler_gets_tool_exceptions_only(kind: str) -> None:
    """A tool's own handler handles ToolExceptions and no other exception."""
    tools: dict[str, Sequence[BaseTool]] = {}
    for name, (own, _) in OWN.items():
        wanted = looks(ToolException("try order 7"), "async")
        other = looks(ValueError(faults.SECRET), "async")
        wanted.handle_tool_error = other.handle_tool_error = own
        other.name = "other"
        tools[name] = [wanted, other]
    async for name, body, read, _ in run_each(kind, tools, ("look", {}), ("other", {})):
        assert read.split("\n") == [OWN[name][1], "Tool other failed: ValueError"], name
        assert {step["outcome"] for step in body["steps"]} == {"tool_error"}, name


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_tools_of_users_are_unchanged(kind: str) -> None:
    """Users' tools stay as they were: outside of a run they raise as before."""
    broken = looks(ValueError("theirs"), "async")
    await run_once(kind, [broken], ("look", {}))
    with pytest.raises(ValueError, match="theirs"):
        await broken.ainvoke({})
    assert not broken.handle_tool_error


@pytest.mark.parametrize("kind", loops.ALL)
async def test_every_step_has_a_call_id(kind: str) -> None:
    """Every step has a call id of its own."""
    tools = fakes.ToolDesk().tools()
    calls: list[Turn] = [("look", {"order": "1"}), ("look", {"order": "2"}), ("broken", {})]
    body, _, facts = await run_once(kind, tools, *(calls[:1] if kind == "react" else calls))
    ids = [step["call_id"] for step in body["steps"]]
    assert all(isinstance(call_id, str) and call_id for call_id in ids)
    assert len(set(ids)) == len(body["steps"]) == body["tool_calls"]
    started = facts.of(ToolCallStarted)
    assert len({fact.call_id for fact in started}) == len(ids)


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_repeated_call_ids_are_told_apart(kind: str) -> None:
    """Steps have distinct call ids even if a model repeats its own in every turn."""
    turns = iter([fakes.asks("look", {"order": "1"}), fakes.asks("look", {"order": "2"})])
    model = fakes.ScriptedModel(script=lambda _: next(turns, AIMessage(loops.ANSWER)))
    async with served({"a": loops.build(kind, model, fakes.ToolDesk().tools())}) as service:
        body = (await service.ask(include_steps=True)).json()
    assert len({step["call_id"] for step in body["steps"]}) == 2


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_result_of_the_wrong_shape_is_a_failure(kind: str) -> None:
    """A tool that promised an artifact and gave none has failed; the run goes on."""

    @tool(response_format="content_and_artifact")
    async def look(order: str = "1") -> Any:
        """Look an order up."""
        return "only the content"

    body, read, _ = await run_once(kind, [look], ("look", {}))
    assert body["steps"][0]["outcome"] == "tool_error"
    assert read == "Tool look failed: ValueError"


class Parcel(BaseModel):
    """Something a tool parses."""

    number: int

    @field_validator("number")
    @classmethod
    def _never(cls, value: int) -> int:
        raise ValueError(faults.SECRET)


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_validation_error_inside_a_tool_is_a_failure(kind: str) -> None:
    """A tool that started and then fails a validation did not get invalid arguments."""

    @tool
    async def look(order: str = "1") -> str:
        """Parse the response of another service."""
        return str(Parcel(number=1))

    _, read, facts = await run_once(kind, [look], ("look", {}))
    assert read == "Tool look failed: ValidationError"
    assert facts.of(ToolCallRejected) == []
    [finished] = facts.of(ToolCallFinished)
    assert isinstance(finished.error, ValidationError)


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_own_cancellation_is_a_failure(kind: str) -> None:
    """A tool whose own work somebody cancelled has failed; nobody stopped the run."""

    @tool
    async def look(order: str = "1") -> str:
        """Await something that is cancelled."""
        work = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(work.cancel)
        await work
        return "never"

    _, read, facts = await run_once(kind, [look], ("look", {}))
    assert read == "Tool look failed: CancelledError"
    assert facts.of(ToolCallFinished)[0].outcome is CallOutcome.TOOL_ERROR


def test_sys_exit_in_a_tool_ends_nothing() -> None:
    """A tool that calls `sys.exit` ends neither the run nor the service."""
    exits = handled(looks(SystemExit(2), "sync"))
    try:
        read = exits.invoke({"order": "1"})
    except SystemExit:
        pytest.fail("SystemExit went past the wrapper, and would end the process")
    assert read == "Tool look failed: SystemExit"


async def test_agent_served_twice_reports_a_failure_once() -> None:
    """An agent that is served under two names reports its failures once."""
    broken = looks(ToolException("try order 7"), "async")
    model = asks_once("create_agent", ("look", {}))
    agent = fakes.build("create_agent", model, [broken])
    async with served({"a": agent, "b": agent}) as service:
        body = (await service.ask(agent="b", include_steps=True)).json()
    assert body["steps"][0]["result"] == "Tool look failed: ToolException: try order 7"
