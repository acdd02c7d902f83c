"""No caller, model or tool can create an unbounded number of time series."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from langchain.agents import create_agent
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool, StructuredTool, tool

from app.telemetry import catalogue
from tests import fakes, faults, wire
from tests.telemetry import busy
from tests.telemetry.watched import Watched, watched

pytestmark = pytest.mark.asyncio(loop_scope="module")
MANY = 150
OVERFLOW = "agent_telemetry_label_overflow_total"


class Renamed(fakes.ScriptedModel):
    """A model with another name and provider each time it is asked."""

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        number = len(self.asked)
        return LangSmithParams(
            ls_provider=f"provider-{number}", ls_model_type="chat", ls_model_name=f"model-{number}"
        )


def _counting_tool(number: int) -> BaseTool:
    async def count() -> str:
        return "counted"

    return StructuredTool.from_function(
        coroutine=count, name=f"count_{number}", description="Count."
    )


def _sub_agent(*numbers: int) -> Any:
    """An agent whose tool asks another agent, which uses all of its many tools at once."""

    def script(messages: Any) -> AIMessage:
        if fakes.results_since_question(messages):
            return AIMessage("counted")
        calls = [fakes.asks(f"count_{n}", {}, number=n).tool_calls[0] for n in numbers]
        return AIMessage("", tool_calls=calls)

    inner: Any = create_agent(
        fakes.ScriptedModel(script=script), [_counting_tool(n) for n in numbers], name="inner"
    )

    @tool
    async def ask() -> str:
        """Ask the other agent."""
        return str((await inner.ainvoke({"messages": [("user", "q")]}))["messages"][-1].text)

    model = fakes.ScriptedModel(script=fakes.calls_then_answers("ask"))
    return fakes.build("langgraph", model, [ask])


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def signals() -> AsyncIterator[Watched]:
    renamed = Renamed(script=lambda messages: AIMessage("done"))
    agents = {
        "renamed": fakes.build("langgraph", renamed, []),
        "one-inside": _sub_agent(1),
        "many-inside": _sub_agent(*range(MANY)),
    }
    async with watched(agents, tracing=False) as service:
        yield service


async def test_models_beyond_the_bound_are_other(signals: Watched) -> None:
    """Models and providers beyond the bound become `_other`, and are counted."""
    for _ in range(60):
        await signals.desk.ask(agent="renamed")
    samples = await signals.scrape()
    name = "agent_llm_call_duration_seconds_count"
    for label in ("model", "provider"):
        values = {s.labels[label] for s in samples.all(name, agent="renamed")}
        assert catalogue.OTHER in values
        assert 1 < len(values) < 60
        assert samples.total(OVERFLOW, label=label) >= 60 - len(values)
    assert samples.total(name, agent="renamed") == 60


async def test_unknown_tool_within_the_bound_has_its_name(signals: Watched) -> None:
    """A tool of a sub-agent, unknown at the start, has its own name within the bound."""
    await signals.desk.ask(agent="one-inside")
    samples = await signals.scrape()
    name = "agent_tool_call_duration_seconds_count"
    assert {s.labels["tool"] for s in samples.all(name, agent="one-inside")} == {"ask", "count_1"}


async def test_unknown_tools_beyond_the_bound_are_other(signals: Watched) -> None:
    """Unknown tools beyond the bound become `_other`, and are counted."""
    await signals.desk.ask(agent="many-inside")
    samples = await signals.scrape()
    name = "agent_tool_call_duration_seconds_count"
    tools = {s.labels["tool"] for s in samples.all(name, agent="many-inside")}
    assert catalogue.OTHER in tools
    assert len(tools) < MANY
    assert samples.total(OVERFLOW, label="tool") >= 1
    assert samples.total(name, agent="many-inside") == MANY + 1


async def test_unknown_method_is_other(signals: Watched) -> None:
    """A method of HTTP that we do not serve is `_other`, and is counted."""
    before = (await signals.scrape()).total(OVERFLOW, label="method")
    for method in ("PROPFIND", "REPORT", "TRACE"):
        await wire.exchange(signals.desk.url, wire.request(method, "/agents"))
    name = "http_server_request_duration_seconds_count"
    await signals.counted(name, at_least=3, method=catalogue.OTHER)
    samples = await signals.counted(OVERFLOW, at_least=before + 3, label="method")
    assert samples.total(name, method=catalogue.OTHER) == 3
    assert samples.total(OVERFLOW, label="method") == before + 3


async def test_unknown_route_is_other(signals: Watched) -> None:
    """A path without a route is `_other`, and is counted."""
    before = (await signals.scrape()).total(OVERFLOW, label="route")
    for number in range(30):
        await signals.desk.client.get(f"/made-up-{number}")
    name = "http_server_request_duration_seconds_count"
    await signals.counted(name, at_least=30, route=catalogue.OTHER)
    samples = await signals.counted(OVERFLOW, at_least=before + 30, label="route")
    assert not [s for s in samples.samples if "made-up" in str(s.labels)]
    assert samples.total(OVERFLOW, label="route") == before + 30


async def test_unknown_agent_is_in_no_metric(signals: Watched) -> None:
    """The name of an agent that is not served is in no metric."""
    assert (await signals.desk.ask(agent="not-served")).status_code == 404
    assert "not-served" not in (await signals.scrape()).text


@pytest.mark.asyncio(loop_scope="function")
async def test_documented_number_of_series_is_kept() -> None:
    """The number of time series is documented, and a busy service keeps to it."""
    budget = getattr(catalogue, "SERIES_BUDGET", None)
    assert isinstance(budget, int), "no SERIES_BUDGET in the catalogue"
    served = {f"agent-{n}": fakes.build("langgraph", faults.model(), []) for n in range(8)}
    async with watched({**busy.agents(), **served}, tracing=False, **busy.OPTIONS) as signals:
        await busy.exercise(signals)
        for name in served:
            await signals.desk.ask(agent=name)
        assert len((await signals.scrape()).samples) <= budget
