"""Agents that would never stop by themselves, of each kind and of the tutorial's ReAct."""

from collections.abc import Callable, Sequence
from typing import Any

from langchain_classic.agents import AgentExecutor, create_react_agent
from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import BaseTool

from examples.seed_agent import PROMPT
from tests import fakes

# The kinds that tests go through: the three that are served, and the tutorial's agent.
ALL = (*fakes.KINDS, "react")
ANSWER = "all I know is in the results"
# The instructions that every agent here gives its model first.
INSTRUCTIONS = {**dict.fromkeys(fakes.KINDS, fakes.SYSTEM_PROMPT), "react": PROMPT.template[:60]}
LIBRARY_SENTENCES = ("Agent stopped due to", "Model call limits exceeded", "iteration limit or")


def react(model: BaseLanguageModel[Any], tools: Sequence[BaseTool], **options: Any) -> Any:
    """The tutorial's agent over another model and other tools, otherwise unchanged."""
    return AgentExecutor(
        agent=create_react_agent(model, tools, PROMPT),
        tools=tools,
        **{"handle_parsing_errors": True, **options},
    )


def build(kind: str, model: Any, tools: Sequence[BaseTool], **options: Any) -> Any:
    """An agent of one of `ALL`."""
    make = react if kind == "react" else lambda *a, **o: fakes.build(kind, *a, **o)
    return make(model, list(tools), **options)


def asking(
    kind: str, tool: str, arguments: dict[str, Any], number: int, parallel: int
) -> AIMessage:
    """A turn in which a model of that kind asks for a tool."""
    if kind != "react":
        return fakes.asks(tool, arguments, number=number * parallel, parallel=parallel)
    argument = next(iter(arguments.values()), "")
    return AIMessage(
        f"I should look.\nAction: {tool}\nAction Input: {argument}", usage_metadata=fakes.USAGE
    )


def answering(kind: str, text: str = ANSWER) -> AIMessage:
    """A turn in which a model of that kind answers."""
    content = f"I now know the final answer\nFinal Answer: {text}" if kind == "react" else text
    return AIMessage(content, usage_metadata=fakes.USAGE)


def asks_times(
    kind: str,
    times: float,
    tool: str = "look",
    arguments: dict[str, Any] | None = None,
    parallel: int = 1,
) -> fakes.ScriptedModel:
    """A model that asks for a tool in its first `times` calls and answers in every other one."""
    calls = iter(range(1_000_000))
    given = {"order": "1"} if arguments is None else arguments

    def script(messages: Sequence[BaseMessage]) -> AIMessage:
        number = next(calls)
        if number < times:
            return asking(kind, tool, given, number, parallel)
        return answering(kind)

    return fakes.ScriptedModel(script=script)


def replies(text: str) -> Callable[[Sequence[BaseMessage]], AIMessage]:
    """A script that always gives the same reply."""
    return lambda _: AIMessage(text, usage_metadata=fakes.USAGE)
