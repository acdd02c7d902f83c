"""A call that cannot be made is reported to the model, counted as rejected, and ends no run."""

from typing import Any

import pytest
from langchain_core.tools import BaseTool, StructuredTool, Tool, tool

from app.runs.events import ToolCallRejected, ToolCallStarted
from app.runs.model import Rejection
from tests import fakes, loops
from tests.agents.test_tool_errors import Turn, run_each, run_once

pytestmark = pytest.mark.waits


@pytest.mark.parametrize("kind", loops.ALL)
async def test_unknown_tool_is_rejected(kind: str) -> None:
    """An unknown tool is rejected, the model reads it, and the run goes on."""
    body, read, facts = await run_once(
        kind, fakes.ToolDesk().tools(), ("no_such_tool", {"order": "1"})
    )
    [fact] = facts.of(ToolCallRejected)
    assert (fact.tool, fact.reason) == ("no_such_tool", Rejection.UNKNOWN_TOOL)
    assert body["tool_calls"] == 0
    assert facts.of(ToolCallStarted) == []
    assert "no_such_tool" in read


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_known_call_beside_an_unknown_is_made(kind: str) -> None:
    """A valid call is made, whatever is beside it."""
    desk = fakes.ToolDesk()
    calls: list[Turn] = [("no_such_tool", {}), ("look", {"order": "7"})]
    body, read, facts = await run_once(kind, desk.tools(), *calls)
    assert (body["tool_calls"], desk.started) == (1, ["look"])
    assert len(facts.of(ToolCallRejected)) == 1
    assert "order 7 shipped" in read


def counts(**options: Any) -> BaseTool:
    """A tool that needs a number, and may handle invalid arguments itself."""

    @tool
    async def count(number: int) -> str:
        """Count."""
        return f"counted {number}"

    for name, value in options.items():
        setattr(count, name, value)
    return count


OWN: dict[str, dict[str, Any]] = {
    "none": {},
    "true": {"handle_validation_error": True},
    "words": {"handle_validation_error": "a number, please"},
}


@pytest.mark.parametrize("kind", loops.ALL)
async def test_invalid_arguments_are_rejected(kind: str) -> None:
    """Invalid arguments are rejected, the model reads it, and the run goes on."""
    tools = {name: [counts(**own)] for name, own in OWN.items()}
    rejected = {}
    async for name, body, read, facts in run_each(kind, tools, ("count", {"number": "many"})):
        rejected[name] = [(fact.tool, fact.reason) for fact in facts.of(ToolCallRejected)]
        assert "counted" not in read, name
        assert [step["outcome"] for step in body["steps"]] == ["tool_error"], name
    assert rejected == {name: [("count", Rejection.INVALID_ARGS)] for name in OWN}


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_missing_argument_is_named(kind: str) -> None:
    """The model reads which argument is missing."""
    _, read, facts = await run_once(kind, [counts()], ("count", {}))
    assert [fact.reason for fact in facts.of(ToolCallRejected)] == [Rejection.INVALID_ARGS]
    assert "number" in read


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_two_arguments_for_a_classic_tool_are_rejected(kind: str) -> None:
    """A classic tool that gets two arguments reports it to the model."""
    classic = Tool("look", lambda order: order, "Look an order up.")
    body, read, _ = await run_once(kind, [classic], ("look", {"a": "1", "b": "2"}))
    assert body["steps"][0]["outcome"] == "tool_error"
    assert "Too many arguments" in read


async def test_text_for_a_tool_with_a_json_schema_fails_the_tool() -> None:
    """Text of a ReAct agent fails a tool described by JSON Schema, and the run goes on."""

    async def count(**given: Any) -> str:
        return f"counted {given}"

    schema = {"type": "object", "properties": {"number": {"type": "integer"}}, "title": "count"}
    by_schema = StructuredTool(name="count", description="c", args_schema=schema, coroutine=count)
    _, read, _ = await run_once("react", [by_schema], ("count", {"number": "3"}))
    assert read.startswith("Tool count failed: ValueError")
