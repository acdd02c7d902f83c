"""Nothing bypasses the limit: sub-agents, retries, fallbacks, or limits of the library."""

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.language_models.llms import LLM
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel, Field

from app.runs.events import IterationCounted, ModelCallStarted
from tests import fakes, faults, loops
from tests.service import Served, served

pytestmark = pytest.mark.waits

LIMIT = 2
CEILING = 4 * (LIMIT + 1)


def sub_agent_tool(sub: Any, flavour: str) -> BaseTool:
    """A tool that asks a sub-agent, in the way of its flavour."""

    @tool("look")
    async def awaited(order: str = "1") -> str:
        """Ask somebody else."""
        return str((await sub.ainvoke({"messages": [("user", order)]}))["messages"][-1].text)

    @tool("look")
    def on_a_thread(order: str = "1") -> str:
        """Ask somebody else."""
        return str(sub.invoke({"messages": [("user", order)]})["messages"][-1].text)

    return awaited if flavour == "async" else on_a_thread


def looping_sub_agent() -> tuple[Any, fakes.ScriptedModel]:
    """An agent that asks for its tool for ever, from async and from sync code, and its model."""

    @tool
    def look(order: str = "1") -> str:
        """Look an order up."""
        return f"order {order} shipped"

    model = loops.asks_times("create_agent", math.inf)
    return create_agent(model, [look]), model


async def stopped(agent: Any, **settings: Any) -> tuple[dict[str, Any], Served]:
    """Ask an agent that runs into a limit; its answer and the facts."""
    async with served({"a": agent}, **{"max_iterations": LIMIT, **settings}) as service:
        response = await service.ask(timeout=10.0)
        assert response.status_code == 200, response.text
        service.books_balance()
        return response.json(), service


@pytest.mark.parametrize("flavour", ["async", "sync"])
@pytest.mark.parametrize("kind", loops.ALL)
async def test_looping_sub_agent_ends_at_the_ceiling(kind: str, flavour: str) -> None:
    """A sub-agent that loops inside a tool ends the run at 4 × (N + 1) model calls in all."""
    sub, inner = looping_sub_agent()
    outer = loops.asks_times(kind, 1)
    body, service = await stopped(loops.build(kind, outer, [sub_agent_tool(sub, flavour)]))
    assert body["outcome"] == "iteration_limit"
    assert body["answer"] == loops.ANSWER
    assert len(inner.asked) + len(outer.asked) == CEILING
    assert len(service.facts_of(ModelCallStarted)) == CEILING
    assert (body["iterations"], body["tool_calls"]) == (1, 1)


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_parallel_looping_sub_agents_stop_with_the_run(kind: str) -> None:
    """Sub-agents that loop on threads make no model call once the run has ended."""
    sub, inner = looping_sub_agent()
    inner.delay_s = 0.01
    outer = loops.asks_times(kind, 1, parallel=3)
    agent = loops.build(kind, outer, [sub_agent_tool(sub, "sync")])
    async with served({"a": agent}, max_iterations=LIMIT) as service:
        body = (await service.ask(timeout=10.0)).json()
        assert body["outcome"] == "iteration_limit"
        await asyncio.sleep(0.2)
        try:
            assert len(inner.asked) + len(outer.asked) <= CEILING
        finally:
            inner.error = RuntimeError("stop the threads")
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", loops.ALL)
async def test_sub_agent_counts_nothing_for_its_caller(kind: str) -> None:
    """A sub-agent that ends counts neither as iterations nor as tool calls of its caller."""
    inner = loops.asks_times("create_agent", 3)
    sub = create_agent(inner, fakes.ToolDesk().tools())
    outer = loops.asks_times(kind, 1)
    body, service = await stopped(loops.build(kind, outer, [sub_agent_tool(sub, "async")]))
    assert (body["outcome"], body["iterations"], body["tool_calls"]) == ("completed", 1, 1)
    assert body["usage"]["input_tokens"] == 10 * (len(inner.asked) + len(outer.asked)) == 60
    assert len(service.facts_of(IterationCounted)) == 1


async def test_agent_as_a_node_is_stopped() -> None:
    """An agent that is a node of a larger graph is stopped after its N turns, too."""
    sub, model = looping_sub_agent()
    graph = StateGraph(fakes.GraphState)
    graph.add_node("worker", sub)
    graph.add_edge(START, "worker")
    graph.add_edge("worker", END)
    body, _ = await stopped(graph.compile(), early_stopping="force")
    assert (body["outcome"], body["iterations"]) == ("iteration_limit", LIMIT)
    assert len(model.asked) == LIMIT


class Meeting(fakes.ScriptedModel):
    """A model whose calls start only when each of them is admitted or refused."""

    met: Any

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        self.met.release()
        while self.met._value < CEILING:
            time.sleep(0.01)
        return super()._get_ls_params(stop, **kwargs)


async def test_calls_at_the_same_time_leave_the_final_answer() -> None:
    """Calls that threads make at the same time do not use up the call of the final answer."""
    met = threading.Semaphore(0)
    model = Meeting(script=lambda _: AIMessage(loops.ANSWER), met=met)

    def call(messages: Any) -> Any:
        try:
            return model.invoke(messages)
        except Exception:
            met.release()
            raise

    async def ask(state: fakes.GraphState) -> dict[str, Any]:
        calls = (asyncio.to_thread(call, state["messages"]) for _ in range(CEILING))
        return {"messages": [(await asyncio.gather(*calls))[0]]}

    graph = StateGraph(fakes.GraphState)
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    body, _ = await stopped(graph.compile())
    assert (body["outcome"], body["answer"]) == ("iteration_limit", loops.ANSWER)


@pytest.mark.parametrize("on_failure", ["continue", "error"])
async def test_own_retries_stop_at_the_ceiling(on_failure: Any) -> None:
    """Retries of a user's middleware stop at the ceiling, and it never answers for the model."""
    calls = iter(range(1_000))

    def script(_: Sequence[BaseMessage]) -> AIMessage:
        number = next(calls)
        if number % 4:
            raise ConnectionError("again")
        return fakes.asks("look", {"order": "1"}, number=number)

    model = fakes.ScriptedModel(script=script)
    retry = ModelRetryMiddleware(max_retries=50, on_failure=on_failure, initial_delay=0.0)
    agent = fakes.build("create_agent", model, fakes.ToolDesk().tools(), middleware=[retry])
    body, _ = await stopped(agent, max_iterations=3, early_stopping="force")
    assert body["outcome"] == "iteration_limit"
    assert (body["iterations"], len(model.asked)) == (3, 9)
    assert "Model call failed" not in body["answer"]


async def test_endless_retries_stop_at_the_ceiling() -> None:
    """Endless retries stop at the ceiling; the last call gives the answer."""
    calls = iter(range(1_000))

    def script(_: Sequence[BaseMessage]) -> AIMessage:
        if next(calls) < CEILING - 1:
            raise ConnectionError("again")
        return AIMessage(loops.ANSWER)

    model = fakes.ScriptedModel(script=script)
    retry = ModelRetryMiddleware(max_retries=10_000, initial_delay=0.0, on_failure="error")
    agent = fakes.build("create_agent", model, [], middleware=[retry])
    async with served({"a": agent}, max_iterations=LIMIT) as service:
        body = (await service.ask(timeout=10.0)).json()
    assert body["outcome"] == "iteration_limit"
    assert len(model.asked) == CEILING


async def test_error_text_of_own_retries_is_no_answer() -> None:
    """The error text that a user's middleware puts in the model's place is no answer."""
    model = fakes.ScriptedModel(script=loops.replies(""), error=ConnectionError(faults.SECRET))
    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0.0)
    agent = fakes.build("create_agent", model, [], middleware=[retry])
    async with served({"a": agent}) as service:
        response = await service.ask()
    assert response.status_code == 500
    assert (response.json()["code"], response.json()["retryable"]) == ("model_failed", True)
    assert faults.SECRET not in response.text


async def test_fallback_model_has_the_same_limit() -> None:
    """A fallback model counts, and has the same limit."""
    failing = fakes.ScriptedModel(script=loops.replies(""), error=ConnectionError("down"))
    standing_in = loops.asks_times("create_agent", LIMIT)
    fallback = ModelFallbackMiddleware(standing_in)
    agent = fakes.build("create_agent", failing, fakes.ToolDesk().tools(), middleware=[fallback])
    body, _ = await stopped(agent, early_stopping="force")
    assert (body["outcome"], body["iterations"]) == ("iteration_limit", LIMIT)
    assert (len(failing.asked), len(standing_in.asked)) == (LIMIT, LIMIT)


async def test_answer_of_a_fallback_model_counts() -> None:
    """An answer of a fallback model is an answer."""
    failing = fakes.ScriptedModel(script=loops.replies(""), error=ConnectionError("down"))
    fallback = ModelFallbackMiddleware(loops.asks_times("create_agent", 1))
    agent = fakes.build("create_agent", failing, fakes.ToolDesk().tools(), middleware=[fallback])
    body, _ = await stopped(agent)
    assert (body["outcome"], body["answer"]) == ("completed", loops.ANSWER)


@pytest.mark.parametrize("stopping", ["generate", "force"])
async def test_limit_of_the_library_ends_as_ours(stopping: str) -> None:
    """A limit of the library ends as ours does, and never with its own sentence."""
    model = loops.asks_times("create_agent", 2, arguments={"order": "77"})
    own = ModelCallLimitMiddleware(run_limit=2, exit_behavior="end")
    agent = fakes.build("create_agent", model, fakes.ToolDesk().tools(), middleware=[own])
    body, _ = await stopped(agent, max_iterations=5, early_stopping=stopping)
    assert (body["outcome"], body["iterations"]) == ("iteration_limit", 2)
    assert "limit exceeded" not in body["answer"].lower()
    assert "Model call limits" not in body["answer"]
    assert (body["answer"] == loops.ANSWER) is (stopping == "generate")
    if stopping == "generate":
        results = [m for m in model.asked[-1] if isinstance(m, ToolMessage)]
        assert len(results) == 2, "the last call knows every result"
        assert not any("limits exceeded" in message.text for message in model.asked[-1])


async def test_model_of_a_middleware_is_no_turn() -> None:
    """A call that a middleware makes to its own model is no turn and delays nothing."""
    checks = fakes.ScriptedModel(script=loops.replies("harmless"))

    class Checked(AgentMiddleware[Any, Any, Any]):
        async def aafter_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
            await checks.ainvoke("Is this harmless?")
            return None

    desk = fakes.ToolDesk()
    model = loops.asks_times("create_agent", LIMIT)
    agent = fakes.build("create_agent", model, desk.tools(), middleware=[Checked()])
    body, _ = await stopped(agent)
    assert (body["outcome"], body["answer"]) == ("iteration_limit", loops.ANSWER)
    assert (body["iterations"], body["tool_calls"]) == (LIMIT, LIMIT)
    assert desk.started == ["look"] * LIMIT
    assert (len(model.asked), len(checks.asked)) == (LIMIT + 1, LIMIT + 1)
    assert model.asked[-1][0].text == fakes.SYSTEM_PROMPT
    assert len([m for m in model.asked[-1] if isinstance(m, ToolMessage)]) == LIMIT


class Verdict(BaseModel):
    """What the order desk found."""

    state: str = Field(min_length=2)


def structured(*turns: dict[str, Any]) -> fakes.ScriptedModel:
    """A model that looks once, then gives its verdict so often; then the last one for ever."""

    def script(messages: Sequence[BaseMessage]) -> AIMessage:
        number = len(fakes.results_since_question(messages))
        if number == 0:
            return fakes.asks("look", {"order": "1"})
        return fakes.asks("Verdict", turns[min(number, len(turns)) - 1], number=number)

    return fakes.ScriptedModel(script=script)


async def test_structured_output_is_no_iteration() -> None:
    """The tool call that gives the structured output is no iteration."""
    agent = create_agent(
        structured({"state": "shipped"}),
        fakes.ToolDesk().tools(),
        response_format=ToolStrategy(Verdict),
    )
    body, _ = await stopped(agent)
    assert (body["outcome"], body["output"]) == ("completed", {"state": "shipped"})
    assert (body["iterations"], body["tool_calls"]) == (1, 1)


async def test_invalid_structured_output_counts() -> None:
    """A turn with invalid structured output gives nothing usable, so it counts."""
    model = structured({"state": ""})
    agent = create_agent(model, fakes.ToolDesk().tools(), response_format=ToolStrategy(Verdict))
    body, _ = await stopped(agent, max_iterations=3, early_stopping="force")
    assert body["outcome"] == "iteration_limit"
    assert (body["iterations"], len(model.asked)) == (3, 3)


class Completing(LLM):
    """A model that completes text and knows no messages."""

    prompts: list[str] = Field(default_factory=list)
    replies: list[str]

    @property
    def _llm_type(self) -> str:
        return "completing"

    def _call(self, prompt: str, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> str:
        self.prompts.append(prompt)
        return self.replies[min(len(self.prompts), len(self.replies)) - 1]


async def test_text_completion_keeps_its_instructions() -> None:
    """A ReAct agent with a completion model keeps its instructions in the last call."""
    turn = "\nAction: look\nAction Input: 77"
    model = Completing(replies=[turn, turn, f"Final Answer: {loops.ANSWER}"])
    body, _ = await stopped(loops.react(model, fakes.ToolDesk().tools()))
    assert (body["outcome"], body["answer"]) == ("iteration_limit", loops.ANSWER)
    assert len(model.prompts) == LIMIT + 1
    assert loops.INSTRUCTIONS["react"] in model.prompts[-1]
    assert model.prompts[-1].count("order 77 shipped") == 2
