"""Structured output by ToolStrategy and ProviderStrategy: valid, invalid and missing."""

from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import AutoStrategy, ProviderStrategy, ToolStrategy
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import create_react_agent
from pydantic import BaseModel

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import completed, failed, limited
from tests.ecosystem.model import Asked, Line, Model, call, calls
from tests.ecosystem.serves import serves
from tests.ecosystem.toolbox import weather

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
LOOK = call("weather", city="Bonn")
MISSING = "The model gave no structured output, which the agent asks for."
INVALID = "The model's structured output does not fit what the agent asks for."


class Sky(BaseModel):
    """The weather."""

    city: str
    sky: Literal["sun", "rain"]


class Unknown(BaseModel):
    """Nothing is known."""

    why: str


FITS = call("Sky", city="Bonn", sky="sun")
BAD = call("Sky", city="Bonn", sky="green")
OUTPUT = {"city": "Bonn", "sky": "sun"}


def agent(response_format: Any, *lines: Line, tools: tuple[Any, ...] = (weather,)) -> Any:
    """An agent that owes a structured response."""
    return create_agent(Model(script=list(lines)), list(tools), response_format=response_format)


@serves("langchain", "`ToolStrategy`, `AutoStrategy`", "`output` has it; its call is no tool call.")
@pytest.mark.parametrize(
    "response_format",
    [
        ToolStrategy(Sky),
        ToolStrategy(Sky | Unknown),
        ToolStrategy(Sky, tool_message_content="Thank you."),
        AutoStrategy(Sky),
        Sky,
    ],
    ids=["tool", "union", "message", "auto", "bare"],
)
async def test_output_by_a_tool_is_no_iteration(serve: Serve, response_format: Any) -> None:
    """A structured response by a tool call ends the run, and is no iteration."""

    def build() -> Any:
        return agent(response_format, calls(LOOK), calls(FITS))

    for run in await serve(build, completed(None, 1, 1)):
        assert run.body["output"] == OUTPUT


@serves("langchain", "`ProviderStrategy`", "`output` has it.")
async def test_output_by_the_provider(serve: Serve) -> None:
    """A structured response in the provider's own format is output."""

    def build() -> Any:
        return agent(ProviderStrategy(Sky), calls(LOOK), '{"city": "Bonn", "sky": "sun"}')

    for run in await serve(build, completed(None, 1, 1)):
        assert run.body["output"] == OUTPUT


@serves("langchain", "`ToolStrategy(handle_errors=…)`", "A response that does not fit is a turn.")
async def test_invalid_output_is_a_turn(serve: Serve) -> None:
    """An invalid response is a turn that asked for nothing usable."""

    def build() -> Any:
        return agent(ToolStrategy(Sky), calls(BAD), calls(FITS))

    for run in await serve(build, completed(None, 1, 0)):
        assert run.body["output"] == OUTPUT


async def test_invalid_output_beside_a_call_is_no_answer(serve: Serve) -> None:
    """Beside an ordinary call the library ends with that call's result, which is no answer."""

    def build() -> Any:
        return agent(ToolStrategy(Sky), calls(BAD, LOOK), calls(FITS))

    await serve(build, failed("model_failed", 1, 1, retryable=False, detail=INVALID))


async def test_valid_output_beside_a_call_counts(serve: Serve) -> None:
    """A valid response beside an ordinary call: both count, and `output` has it."""

    def build() -> Any:
        return agent(ToolStrategy(Sky), calls(FITS, LOOK))

    for run in await serve(build, completed(None, 1, 1)):
        assert run.body["output"] == OUTPUT


async def test_two_outputs_at_once_are_asked_for_again(serve: Serve) -> None:
    """Two responses in one turn are one too many: the library asks again."""

    def build() -> Any:
        return agent(ToolStrategy(Sky), calls(FITS, FITS), calls(FITS))

    for run in await serve(build, completed(None, 1, 0)):
        assert run.body["output"] == OUTPUT


async def test_permanently_invalid_output_ends_at_the_limit(serve: Serve) -> None:
    """Permanently invalid responses end at the limit, and `output` has none."""

    def build() -> Any:
        return agent(ToolStrategy(Sky), calls(BAD))

    for run in await serve(build, limited(None, 3, 0), max_iterations=3):
        assert run.body["output"] is None


@pytest.mark.parametrize("response_format", [ToolStrategy(Sky, handle_errors=False)])
async def test_unhandled_invalid_output_is_model_failed(serve: Serve, response_format: Any) -> None:
    """An invalid response that the agent does not handle is the model's failure."""
    expected = failed("model_failed", None, 0, retryable=True, detail=INVALID)
    await serve(lambda: agent(response_format, calls(BAD)), expected)


async def test_invalid_output_of_the_provider_is_model_failed(serve: Serve) -> None:
    """The same holds for the provider's own format."""
    expected = failed("model_failed", None, 0, retryable=True, detail=INVALID)
    await serve(lambda: agent(ProviderStrategy(Sky), '{"city": "Bonn", "sky": 7}'), expected)


@serves(
    "langchain", "a structured response that is missing", "500 `model_failed`; `detail` says so."
)
@pytest.mark.parametrize("lines", [["It is sunny."], [calls(LOOK), "It is sunny."]])
async def test_missing_output_is_no_answer(serve: Serve, lines: list[Line]) -> None:
    """Plain text in place of structured output is no answer."""
    looked = len(lines) - 1
    retryable = not looked
    expected = failed("model_failed", looked, looked, retryable=retryable, detail=MISSING)
    await serve(lambda: agent(ToolStrategy(Sky), *lines), expected)


async def test_missing_output_without_tools_counts(serve: Serve) -> None:
    """If the library asks again and again, each turn counts, and the limit ends it."""

    def build() -> Any:
        return agent(ToolStrategy(Sky), "It is sunny.", tools=())

    await serve(build, limited(None, 3, 0), max_iterations=3)


def _prebuilt(*, fits: bool) -> Any:
    def reply(asked: Asked) -> Line:
        if "Sky" in asked.tools:
            return calls(FITS if fits else BAD)
        return "It is sunny." if asked.results else calls(LOOK)

    return create_react_agent(Model(script=[reply]), [weather], response_format=Sky)


async def test_prebuilt_agent_has_answer_and_output(serve: Serve) -> None:
    """The older prebuilt agent has both: an answer and a structured response."""
    for run in await serve(lambda: _prebuilt(fits=True), completed("It is sunny.", 1, 1)):
        assert run.body["output"] == OUTPUT


async def test_invalid_output_of_a_prebuilt_agent_is_model_failed(serve: Serve) -> None:
    """An invalid response of the older prebuilt agent is the model's failure."""
    expected = failed("model_failed", 1, 1, detail=INVALID)
    await serve(lambda: _prebuilt(fits=False), expected)


async def test_earlier_output_is_no_output(serve: Serve) -> None:
    """In a thread, output of an earlier question is no output of this one."""

    def reply(asked: Asked) -> Line:
        return calls(FITS) if "first" in asked.question else "I do not know."

    model = Model(script=[reply])
    saved = create_agent(
        model, [weather], response_format=ToolStrategy(Sky), checkpointer=InMemorySaver()
    )
    (first,) = await serve(
        lambda: saved, completed(None), modes=("sync",), thread_id="t", question="the first"
    )
    assert first.body["output"] == OUTPUT
    expected = failed("model_failed", 0, 0, detail=MISSING)
    await serve(lambda: saved, expected, modes=("sync",), thread_id="t", question="the second")
