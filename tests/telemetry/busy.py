"""A service that does a bit of everything, so that every metric has something to count."""

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage
from pydantic import Field

from tests import fakes, faults
from tests.telemetry.holding import Holding
from tests.telemetry.watched import Watched
from watchkeeper import build_agent

OPTIONS: dict[str, Any] = {"timeout_s": 17.0, "tool_threads": 9, "max_running_runs": 40}


class Named(fakes.ScriptedModel):
    """A model that reports its name."""

    name_of_model: str = "gpt-4o"
    failures: list[Exception] = Field(default_factory=list)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(
            ls_provider="acme", ls_model_type="chat", ls_model_name=self.name_of_model
        )

    async def _agenerate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        if self.failures:
            raise self.failures.pop()
        return await super()._agenerate(messages, *args, **kwargs)


def _detailed(messages: Sequence[Any]) -> AIMessage:
    spent: Any = {
        "input_tokens": 1000,
        "output_tokens": 100,
        "total_tokens": 1100,
        "input_token_details": {"cache_read": 400, "cache_creation": 200},
        "output_token_details": {"reasoning": 60},
    }
    return AIMessage("done", usage_metadata=spent)


def _strange(name: str, arguments: dict[str, Any]) -> fakes.Script:
    def script(messages: Sequence[Any]) -> AIMessage:
        done = fakes.results_since_question(messages)
        return AIMessage("done") if done else fakes.asks(name, arguments)

    return script


def agents(desk: Holding | None = None) -> dict[str, Any]:
    """One for each thing that there is a metric of."""
    tools = (desk or Holding()).tools()
    made: dict[str, Any] = {"fresh": fakes.build("langgraph", faults.model(), tools)}
    for name in ("look", "nap", "block", "stubborn"):
        model = fakes.ScriptedModel(script=fakes.calls_then_answers(name))
        made[name] = fakes.build("create_agent", model, tools)
    made["streams"] = fakes.build("agent_executor", faults.model(), tools)
    made["priced"] = fakes.build("langgraph", Named(script=_detailed), [])
    unknown = Named(script=_detailed, name_of_model="made-up")
    made["unpriced"] = fakes.build("langgraph", unknown, [])
    flaky = Named(script=_detailed, failures=[TimeoutError("x"), TimeoutError("x")])
    made["retries"] = build_agent(flaky, [])
    invented = fakes.ScriptedModel(script=_strange("invented", {}))
    made["invents"] = fakes.build("create_agent", invented, tools)
    wrong = fakes.ScriptedModel(script=_strange("look", {"order": {"no": 1}}))
    made["mistakes"] = fakes.build("create_agent", wrong, tools)
    made["limited"] = build_agent(faults.model(), tools, max_iterations=7)
    return made


async def exercise(signals: Watched) -> None:
    """Make a sample of everything that has a source."""
    for agent in ("look", "streams", "priced", "unpriced", "retries", "invents", "limited"):
        assert (await signals.desk.ask(agent=agent)).status_code == 200
    assert (await signals.desk.ask(agent="nap", timeout=0.1)).status_code == 504
