"""The oldest executors, those of `initialize_agent`: still served, counted and limited."""

import json
from typing import Any

import pytest
from langchain_classic.agents import AgentType, initialize_agent
from langchain_core.tools import Tool

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import completed, failed, limited
from tests.ecosystem.model import Line, Model
from tests.ecosystem.served import WITHOUT_STORE
from tests.ecosystem.serves import does_not_serve, serves
from tests.ecosystem.test_classic import FIXED, FUNCTION, look, turns

pytestmark = pytest.mark.filterwarnings(
    "ignore::langchain_core._api.deprecation.LangChainDeprecationWarning"
)


def _blob(action: str, given: str) -> str:
    return f"```json\n{json.dumps({'action': action, 'action_input': given})}\n```"


REACT = "Thought: look\nAction: weather\nAction Input: Bonn"
# How the model of each type asks, and how it answers.
TYPES: dict[AgentType, tuple[Line, str]] = {
    AgentType.ZERO_SHOT_REACT_DESCRIPTION: (REACT, "Thought: I know\nFinal Answer: seven"),
    AgentType.CHAT_ZERO_SHOT_REACT_DESCRIPTION: (
        f"Thought: look\nAction:\n{_blob('weather', 'Bonn')}",
        "Thought: I know\nFinal Answer: seven",
    ),
    AgentType.CONVERSATIONAL_REACT_DESCRIPTION: (
        "Thought: Do I need to use a tool? Yes\nAction: weather\nAction Input: Bonn",
        "Thought: Do I need to use a tool? No\nAI: seven",
    ),
    AgentType.CHAT_CONVERSATIONAL_REACT_DESCRIPTION: (
        _blob("weather", "Bonn"),
        _blob("Final Answer", "seven"),
    ),
    AgentType.STRUCTURED_CHAT_ZERO_SHOT_REACT_DESCRIPTION: (
        _blob("weather", "Bonn"),
        _blob("Final Answer", "seven"),
    ),
}
# The library gives these their callbacks twice where they are asked asynchronously.
BROKEN = (AgentType.OPENAI_FUNCTIONS, AgentType.OPENAI_MULTI_FUNCTIONS)
types = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.value)


def executor(kind: AgentType, model: Model) -> Any:
    """An executor of this type with one tool."""
    tools = [Tool("weather", look, "Look up the weather of a city.")]
    return initialize_agent(tools, model, agent=kind)


@serves("langchain-classic", "`initialize_agent`", "As the newer executors.")
@types
async def test_executor_answers_in_one_turn(serve: Serve, kind: AgentType) -> None:
    """An executor looks something up and answers: one turn, with its parser's result."""
    asks, answers = TYPES[kind]
    model = turns(asks, answers)
    expected = completed("seven", 1, 1)
    for run in await serve(lambda: executor(kind, model), expected, modes=WITHOUT_STORE):
        assert len(run.calls_of(model)) == 2


@types
async def test_executor_is_asked_once_more_at_the_limit(serve: Serve, kind: AgentType) -> None:
    """At the limit the executor's model is asked once more, and its own parser reads the answer."""
    asks, answers = TYPES[kind]
    model = turns(asks, asks, answers)
    expected = limited("seven", 2, 2)
    for run in await serve(lambda: executor(kind, model), expected, max_iterations=2):
        assert len(run.calls_of(model)) == 3
        assert run.calls_of(model)[-1].text.count("sun in ") == 2


@types
async def test_model_that_will_not_stop_has_no_answer(serve: Serve, kind: AgentType) -> None:
    """A model that asks for a tool even then has not answered."""
    model = turns(TYPES[kind][0])
    expected = limited(FIXED.format(2), 2, 2)
    await serve(lambda: executor(kind, model), expected, max_iterations=2, modes=WITHOUT_STORE)


@does_not_serve(
    "langchain-classic",
    "`initialize_agent` with the types of OpenAI's functions",
    "The library itself fails when it is asked asynchronously: 500 `agent_failed`.",
)
@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.value)
async def test_types_that_fail_in_the_library(serve: Serve, kind: AgentType) -> None:
    """A type that fails in a plain program fails here, too."""
    model = turns(FUNCTION, "seven")
    with pytest.raises(TypeError):
        await executor(kind, model).ainvoke({"input": "go"})
    await serve(lambda: executor(kind, model), failed("agent_failed", retryable=False))
