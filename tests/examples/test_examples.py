"""Readers copy the examples, so each works: with the real client, over a real socket."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from examples import agent_executor, create_agent, langgraph_graph, seed_agent
from tests.service import served
from tests.upstreams import aimock

QUESTION = "Where is order 10023?"
STATE = "Order 10023 is shipped"

# The OpenAI client is cached by address, across event loops: tests of one upstream share a loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with aimock() as base_url:
        yield base_url


@pytest.fixture(autouse=True)
def environment(upstream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", upstream)
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-secret")


async def test_create_agent_looks_up_an_order() -> None:
    """The agent of create_agent looks the order up."""
    result = await create_agent.orders().ainvoke({"messages": [("user", QUESTION)]})
    assert STATE in result["messages"][-1].text


async def test_langgraph_graph_looks_up_an_order() -> None:
    """The hand-made graph looks the order up."""
    result = await langgraph_graph.orders().ainvoke({"messages": [("user", QUESTION)]})
    assert STATE in result["messages"][-1].text


async def test_several_orders_at_once() -> None:
    """Orders asked for together are looked up in one turn."""
    question = {"messages": [("user", "Where are orders 10023 and 10024?")]}
    _, calls, *results, answer = (await create_agent.orders().ainvoke(question))["messages"]
    assert [call["args"]["order_id"] for call in calls.tool_calls] == ["10023", "10024"]
    assert len(results) == 2
    assert STATE in answer.text
    assert "Order 10024 is being packed" in answer.text


async def test_agent_executor_looks_up_an_order() -> None:
    """The classic executor looks the order up."""
    result = await agent_executor.orders().ainvoke({"input": QUESTION})
    assert STATE in result["output"]
    assert len(result["intermediate_steps"]) == 1


async def test_tutorial_agent_looks_up_an_order() -> None:
    """The tutorial's ReAct agent looks the order up."""
    result = await seed_agent.agent().ainvoke({"input": QUESTION})
    assert STATE in result["output"]
    assert [action.tool for action, _ in result["intermediate_steps"]] == ["query_order"]


async def test_tutorial_agent_looks_up_several_orders() -> None:
    """The tutorial's agent looks orders up one after the other."""
    result = await seed_agent.agent().ainvoke({"input": "Where are orders 10023 and 10024?"})
    assert [action.tool_input for action, _ in result["intermediate_steps"]] == ["10023", "10024"]
    assert "Order 10024 is being packed" in result["output"]


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (create_agent.orders, "create_agent"),
        (langgraph_graph.orders, "langgraph"),
        (agent_executor.orders, "agent_executor"),
        (seed_agent.agent, "agent_executor"),
    ],
    ids=["create_agent", "langgraph", "agent_executor", "seed"],
)
async def test_every_example_is_served(build: Callable[[], Any], kind: str) -> None:
    """Served over HTTP, every example answers with the order's state and its usage."""
    async with served({"orders": build()}) as service:
        response = await service.ask(QUESTION)
        [body] = (await service.client.get("/agents")).json()["agents"]
    run = response.json()
    assert response.status_code == 200, run
    assert STATE in run["answer"]
    assert (run["outcome"], run["iterations"], run["tool_calls"]) == ("completed", 1, 1)
    assert (body["kind"], body["tools"], body["demo"]) == (kind, ["query_order"], False)


async def test_tutorial_agent_asks_for_an_id() -> None:
    """The tutorial's agent asks for an id when the question has none."""
    result = await seed_agent.agent().ainvoke({"input": "Where is my order?"})
    assert result["output"] == "Please give me an order id."
