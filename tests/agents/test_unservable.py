"""Agents that would fail in every run are refused at start, in one sentence."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from langchain_classic.agents import AgentExecutor
from langchain_classic.agents.agent import AgentOutputParser, BaseSingleActionAgent
from langchain_core.agents import AgentFinish
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from psycopg import OperationalError

from app.agents.inspection.graph_requirements import default_context
from app.agents.registry import AgentLoadError, adapt
from app.runs.model import AgentInfo
from tests import faults
from tests.agents import demanding_graphs, sync_parts
from tests.agents.demanding_graphs import ASKED
from tests.service import Served, served

REFUSED = sync_parts.REFUSED | demanding_graphs.REFUSED
SERVED = sync_parts.SERVED | demanding_graphs.SERVED
# What agents raise that are run without what they need.
FAILURES = (
    AttributeError, KeyError, NotImplementedError, OperationalError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
INFO = AgentInfo(name="a", kind="")


def refusal(thing: Any) -> str:
    """The sentence with which it is refused."""
    with pytest.raises(AgentLoadError) as refused:
        adapt(thing, "shop:orders", INFO)
    sentence = str(refused.value)
    assert sentence.startswith("shop:orders ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("name", [*REFUSED, *ASKED])
def test_unservable_agent_is_refused(name: str) -> None:
    """A missing requirement of every run is named, with the remedy."""
    thing, words = (REFUSED | ASKED)[name]
    assert words in refusal(thing)


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_agents_would_fail(name: str) -> None:
    """No agent is refused that would have answered."""
    thing, _ = REFUSED[name]
    inputs = {"messages": [("user", "q")]}
    config = {"configurable": {"thread_id": "t"}}
    if thing is demanding_graphs.function:
        assert await thing.ainvoke(inputs) == "an answer"  # but who would read a question there?
        return
    with pytest.raises(FAILURES):
        await thing.ainvoke(inputs, config)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk() -> AsyncIterator[Served]:
    agents = {name.replace(" ", "-").replace("'", ""): agent for name, agent in SERVED.items()}
    async with served(agents) as service:
        yield service


@pytest.mark.waits
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", SERVED)
async def test_similar_agents_are_served(desk: Served, name: str) -> None:
    """An agent that only looks unservable is served, and answers."""
    response = await desk.ask("q", name.replace(" ", "-").replace("'", ""))
    assert response.status_code == 200, response.text
    assert response.json()["outcome"] == "completed"


def test_context_with_defaults_is_available() -> None:
    """A context whose fields have defaults is available to each run; another one is not."""
    first = default_context(SERVED["context with defaults"])
    assert first == demanding_graphs.Anybody("anybody")
    assert first is not default_context(SERVED["context with defaults"])
    assert default_context(SERVED["context that may be missing"]) is None
    assert default_context(SERVED["thread"]) is None
    assert default_context(REFUSED["context"][0]) is None


class Own(BaseSingleActionAgent):
    """A classic agent of somebody's own that answers in another key."""

    @property
    def input_keys(self) -> list[str]:
        return ["input"]

    @property
    def return_values(self) -> list[str]:
        return ["result"]

    def plan(self, *_: Any, **__: Any) -> AgentFinish:
        return AgentFinish({"result": "fine"}, "")

    async def aplan(self, *_: Any, **__: Any) -> AgentFinish:
        return AgentFinish({"result": "fine"}, "")


class OtherKey(AgentOutputParser):
    """A parser that does."""

    def parse(self, text: str) -> AgentFinish:
        return AgentFinish(return_values={"result": text}, log=text)


class MoreKeys(AgentOutputParser):
    """A parser that gives more than the answer."""

    def parse(self, text: str) -> AgentFinish:
        return AgentFinish({"output": text, "result": text}, log=text)


def other_key(message: Any) -> AgentFinish:
    return AgentFinish({"result": message.text}, "")


def executor(last: Any) -> Any:
    """An executor that ends with that."""
    prompt = ChatPromptTemplate.from_messages([("human", "{input}")])
    return AgentExecutor(agent=prompt | faults.model() | last, tools=[])


@pytest.mark.parametrize(
    "thing",
    [
        AgentExecutor(agent=Own(), tools=[]),
        executor(OtherKey()),
        executor(RunnableLambda(other_key)),
    ],
    ids=["agent", "parser", "function"],
)
def test_executor_that_answers_in_another_key_is_refused(thing: Any) -> None:
    """An executor whose answer is not in `output` is refused, naming the key."""
    assert "AgentExecutor that answers in ['result']" in refusal(thing)


def test_executor_with_more_keys_is_served() -> None:
    """An executor that returns more than its answer is served."""
    assert adapt(executor(MoreKeys()), "shop:orders", INFO).info.kind == "agent_executor"
