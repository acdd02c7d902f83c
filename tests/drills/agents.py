"""Agents that do what they are asked to do wrong: the first word of a question is the plan.

What hangs or misbehaves outside of a run is a switch: a file in the directory that
DRILL_SWITCHES names, so that a fault can be healed without a restart.
"""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.tools import BaseTool, tool

from app.runs.errors import RunError
from app.runs.live import Run
from app.runs.runner import Runner
from app.telemetry.metrics import Metrics
from tests import fakes
from watchkeeper import build_agent

_HELD_AT_MOST_S = 120.0
_BLOCKED_S = 0.8
_SLOW_S = 9.0
_MANY_TOKENS: Any = {"input_tokens": 1_000_000, "output_tokens": 10, "total_tokens": 1_000_010}


def on(switch: str) -> bool:
    """Whether a switch is thrown."""
    return Path(os.environ["DRILL_SWITCHES"], switch).exists()


def _plan(messages: Sequence[BaseMessage]) -> str:
    question = next(m for m in reversed(messages) if isinstance(m, HumanMessage))
    return question.text.split()[0]


def _script(messages: Sequence[BaseMessage]) -> AIMessage:
    """Look one order up and answer, unless the plan is another one."""
    plan, done = _plan(messages), len(fakes.results_since_question(messages))
    if plan == "loop":
        return fakes.asks("query_order", {"order": "1"}, number=done)
    if plan == "crash":
        raise ConnectionError("the model does not answer")
    if plan == "invent" and not done:
        return fakes.asks("query_weather", {"town": "Ulm"})
    if plan == "audit" and not done:
        return fakes.asks("audit", {})
    if done < (9 if plan == "nine" else 1):
        return fakes.asks("query_order", {"order": plan}, number=done)
    spent = _MANY_TOKENS if plan == "expensive" else fakes.USAGE
    return AIMessage("Order 1 is on its way.", usage_metadata=spent)


class DrillModel(fakes.ScriptedModel):
    """Follows the plan under the name of a model that has a price, or has none."""

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        name = f"model-{next(_numbers)}" if on("new-names") else "gpt-4o"
        name = "home-made" if on("no-price") else name
        return LangSmithParams(ls_provider="acme", ls_model_type="chat", ls_model_name=name)

    async def _astream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        if _plan(messages) == "slow" and on("slow"):
            await asyncio.sleep(_SLOW_S)
        async for chunk in super()._astream(messages, *args, **kwargs):
            yield chunk


_numbers = itertools.count()


@tool
async def query_order(order: str) -> str:
    """Say where an order is."""
    if order == "raise":
        raise ConnectionError("the warehouse does not answer")
    if order == "block":
        time.sleep(_BLOCKED_S)  # noqa: ASYNC251 - the fault of the drill
    if order == "hang":
        await _while_hanging()
    return f"Order {order} is on its way."


async def _while_hanging() -> None:
    async for _ in _ticks():
        if not on("hang"):
            return


async def _ticks() -> AsyncIterator[None]:
    end = time.monotonic() + _HELD_AT_MOST_S
    while time.monotonic() < end:
        yield
        await asyncio.sleep(0.05)


@tool
def audit() -> str:
    """Read the books: sync, on a thread, where nothing can stop it."""
    end = time.monotonic() + _HELD_AT_MOST_S
    while on("hang") and time.monotonic() < end:
        time.sleep(0.05)
    return "The books are in order."


class Raising(AgentMiddleware[Any, Any, Any]):
    """Fails the agent itself, which is neither its model's fault nor a tool's."""

    async def abefore_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        if _plan(state["messages"]) == "fail":
            raise LookupError("the agent has lost its way")
        return None


def orders() -> Any:
    """An order desk that follows plans."""
    tools: list[BaseTool] = [query_order, audit]
    return build_agent(DrillModel(script=_script), tools, middleware=[Raising()])


def assistant() -> Any:
    """An agent whose model is a real server: OPENAI_BASE_URL."""
    return build_agent("gpt-4.1-mini", [query_order])


def forgetful() -> Any:
    """The order desk in a service that ignores its deadlines while a switch is on.

    The service cannot be made to do that from outside, so the drill breaks it from inside.
    """
    stop = Runner.stop

    def stop_unless_forgotten(runner: Runner, run: Run, reason: RunError) -> None:
        if not on("forget-deadlines"):
            stop(runner, run, reason)

    Runner.stop = stop_unless_forgotten  # type: ignore[assignment, method-assign]
    return orders()


def uncounted() -> Any:
    """The order desk in a service whose metrics raise while a switch is thrown."""
    take = Metrics.__call__

    def take_or_raise(metrics: Metrics, fact: Any) -> None:
        if on("break-metrics"):
            raise ArithmeticError("cannot count")
        take(metrics, fact)

    Metrics.__call__ = take_or_raise  # type: ignore[assignment, method-assign]
    return orders()
