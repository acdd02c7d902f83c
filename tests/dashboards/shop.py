"""A shop whose agents follow their question: answer, loop, hang, fail, invent tools.

The first word of a question says what happens in the run, so that a few requests cause every
outcome that a dashboard can show. It is served by the real command, with `SETTINGS` and `AGENTS`.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import interrupt
from pydantic import PrivateAttr

from tests import fakes
from watchkeeper import build_agent

PLACES, QUEUED = 12, 6
SETTINGS = f"""
max_running_runs = {PLACES}
max_queued_runs = {QUEUED}
tool_threads = 4
timeout_s = 8

[agents.orders]
max_iterations = 6
timeout_s = 4

[agents.research]
max_iterations = 8
timeout_s = 6

[agents.support]
max_iterations = 5
timeout_s = 3
"""
AGENTS = tuple(f"{name}=tests.dashboards.shop:{name}" for name in ("orders", "research", "support"))
_HANGS_S, _HELD_S, _SLOW_S = 5.0, 1.2, 6.0


class Limited(Exception):
    """What a provider's client raises for a 429."""

    status_code = 429
    is_retryable = True


class Actor(fakes.ScriptedModel):
    """A model that follows the question's first word, at the pace of a model."""

    provider: str
    model: str
    tools: tuple[str, ...]
    pace_s: float = 0.15
    script: fakes.Script = fakes.calls_then_answers("")
    _failed: set[str] = PrivateAttr(default_factory=set)
    _dice: random.Random = PrivateAttr(default_factory=lambda: random.Random(7))

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(
            ls_provider=self.provider, ls_model_type="chat", ls_model_name=self.model
        )

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        question = next(m.text for m in reversed(messages) if isinstance(m, HumanMessage))
        what = question.partition(" ")[0]
        usual = self.pace_s * self._dice.lognormvariate(0, 0.5)
        await asyncio.sleep(_SLOW_S if what == "slow" else usual)
        if what == "fail":
            raise ValueError("the model is out of order")
        if what in ("limited", "flaky") and question not in self._failed:
            self._failed.add(question)
            raise Limited if what == "limited" else TimeoutError
        self.script = self._script(what)
        result = await super()._agenerate(messages, *args, **kwargs)
        message = result.generations[0].message
        assert isinstance(message, AIMessage)
        message.usage_metadata = self._usage(len(messages))
        message.response_metadata = {
            "finish_reason": "tool_calls" if message.tool_calls else "stop"
        }
        return result

    def _script(self, what: str) -> fakes.Script:
        usual = self.tools[0]
        scripts: Mapping[str, fakes.Script] = {
            "loop": fakes.never_stops(usual),
            "long": fakes.calls_then_answers(usual, turns=4),
            "pairs": fakes.calls_then_answers(usual, parallel=2),
            "invent": _once("teleport", {}),
            "mistake": _once(usual, {"order": {"no": 1}}),
            **{name: fakes.calls_then_answers(name) for name in self.tools},
        }
        return scripts.get(what) or scripts[usual]

    def _usage(self, turns: int) -> Any:
        given = 400 + 300 * turns + self._dice.randrange(200)
        written = 40 + self._dice.randrange(160)
        return {
            "input_tokens": given,
            "output_tokens": written,
            "total_tokens": given + written,
            "input_token_details": {"cache_read": given // 3, "cache_creation": given // 8},
            "output_token_details": {"reasoning": written // 2},
        }


def _once(name: str, arguments: dict[str, Any]) -> fakes.Script:
    """Ask once for what cannot be run, then answer."""

    def script(messages: Sequence[BaseMessage]) -> AIMessage:
        done = fakes.results_since_question(messages)
        return AIMessage("done") if done else fakes.asks(name, arguments)

    return script


def _tools() -> dict[str, BaseTool]:
    dice = random.Random(11)

    @tool
    async def find_order(order: str = "10023") -> str:
        """Find an order in the shop's books."""
        await asyncio.sleep(dice.lognormvariate(-3, 0.7))
        return f"order {order} is on its way"

    @tool
    async def search_web(words: str = "parcel") -> str:
        """Search, as long as the web takes."""
        await asyncio.sleep(dice.lognormvariate(-1.2, 0.6))
        return f"nothing about {words}"

    @tool
    async def wait_for_carrier() -> str:
        """Wait for a reply that does not come in time."""
        await asyncio.sleep(_HANGS_S)
        return "no answer"

    @tool
    def old_books() -> str:
        """Read the old books, on a thread that nothing stops."""
        time.sleep(_HANGS_S)
        return "nothing"

    @tool
    async def stubborn() -> str:
        """Go on, whatever the cancellation."""
        end = time.monotonic() + _HANGS_S
        while (left := end - time.monotonic()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                continue
        return "done"

    @tool
    async def hold_the_loop() -> str:
        """Hold the event loop itself."""
        time.sleep(_HELD_S)  # noqa: ASYNC251 - that is what it is for
        return "held"

    @tool
    async def broken() -> str:
        """Raise."""
        raise ConnectionError

    @tool
    async def ask_a_human() -> str:
        """Ask somebody, which ends the run."""
        return str(interrupt("may I?"))

    made = (
        find_order, search_web, wait_for_carrier, old_books, stubborn, hold_the_loop, broken,
        ask_a_human,
    )  # fmt: skip
    return {made_tool.name: made_tool for made_tool in made}


def _agent(provider: str, model: str, pace_s: float, usual: str, **options: Any) -> Any:
    tools = _tools()
    names = (usual, *(name for name in tools if name != usual))
    actor = Actor(provider=provider, model=model, tools=names, pace_s=pace_s)
    return build_agent(actor, list(tools.values()), **options)


def orders() -> Any:
    """Quick, and well known."""
    return _agent("openai", "gpt-4o-mini", 0.12, "find_order")


def research() -> Any:
    """Slow, and prone to loops."""
    return _agent("anthropic", "claude-sonnet-4-5", 0.35, "search_web")


def support() -> Any:
    """On a model of one's own that has no price, with a tool that asks a human."""
    return _agent("in-house", "helper-7b", 0.2, "find_order", checkpointer=InMemorySaver())
