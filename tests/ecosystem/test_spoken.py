"""Whose text a stream sends: the agent's without a name, that of others with their names."""

import operator
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import PIIMiddleware, after_agent, before_model
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Send

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import Expected, completed
from tests.ecosystem.model import Model, call, calls, last_result
from tests.ecosystem.reports import Run
from tests.ecosystem.serves import does_not_serve
from tests.ecosystem.toolbox import asking, said_by, weather
from tests.streams.reading import names_of

ANSWER = "The answer is four."
LOOK = call("weather", city="Bonn")


def speaker(text: str, name: str = "model") -> Model:
    """A model that says this, word by word."""
    return Model(script=[text], model_name=name, delay_s=0.002)


async def streamed(serve: Serve, build: Any, expected: Expected, **body: Any) -> Run:
    """The one run of a stream."""
    (run,) = await serve(build, expected, modes=("stream",), **body)
    return run


async def test_text_of_a_hook_is_not_the_agents(serve: Serve) -> None:
    """The text that a hook gets from a model is not the agent's."""
    aside = speaker("A SUMMARY")

    @before_model
    async def sum_up(state: Any, runtime: Any) -> None:
        await aside.ainvoke("Sum it up.")

    @after_agent
    async def name_it(state: Any, runtime: Any) -> None:
        await aside.ainvoke("Give it a title.")

    def build() -> Any:
        return create_agent(speaker(ANSWER), [], middleware=[sum_up, name_it])

    assert (await streamed(serve, build, completed(ANSWER))).spoken() == ANSWER


async def test_nostream_text_is_not_streamed(serve: Serve) -> None:
    """Text of a model that is tagged `nostream` is never streamed."""

    async def think(state: MessagesState) -> dict[str, Any]:
        await speaker("INTERNAL").with_config(tags=["nostream"]).ainvoke("go")
        return {}

    def build() -> Any:
        graph = StateGraph(MessagesState)
        graph.add_node("think", think)
        graph.add_node("answer", asking(speaker(ANSWER)))
        graph.add_edge(START, "think")
        graph.add_edge("think", "answer")
        return graph.compile()

    run = await streamed(serve, build, completed(ANSWER))
    assert run.spoken() == ANSWER
    assert "INTERNAL" not in str(run.events)


async def test_text_of_an_agent_node_has_its_name(serve: Serve) -> None:
    """The text of an agent that works for another has its name."""

    def build() -> Any:
        graph = StateGraph(MessagesState)
        graph.add_node("scout", create_agent(speaker("Some notes."), [], name="scout"))
        graph.add_node("boss", asking(speaker(ANSWER)))
        graph.add_edge(START, "scout")
        graph.add_edge("scout", "boss")
        return graph.compile()

    run = await streamed(serve, build, completed(ANSWER))
    assert (run.spoken(), run.spoken("scout")) == (ANSWER, "Some notes.")


async def test_text_of_an_agent_in_a_tool_has_its_name(serve: Serve) -> None:
    """The text of an agent that a tool asks has its name."""

    def build() -> Any:
        scout = create_agent(speaker("Some notes."), [], name="scout")

        @tool
        async def ask_scout() -> str:
            """Ask."""
            return await said_by(scout)

        return create_agent(Model(script=[calls("ask_scout"), last_result()]), [ask_scout])

    run = await streamed(serve, build, completed("I read: Some notes.", 1, 1))
    assert (run.spoken(), run.spoken("scout")) == ("I read: Some notes.", "Some notes.")


class Parts(MessagesState):
    """What the branches wrote."""

    parts: Annotated[list[str], operator.add]


async def test_text_of_branches_is_retracted(serve: Serve) -> None:
    """A reader that drops retracted text has the answer alone, not the mixed text of branches."""

    async def write(state: Any) -> dict[str, Any]:
        reply = await speaker(" ".join(f"{state}{n}" for n in range(5))).ainvoke("go")
        return {"parts": [str(reply.text)]}

    async def join(state: Parts) -> dict[str, Any]:
        return {"messages": [await speaker(ANSWER).ainvoke("go")]}

    def build() -> Any:
        graph = StateGraph(Parts)
        graph.add_node("write", write)
        graph.add_node("join", join)
        graph.add_conditional_edges(START, lambda _: [Send("write", p) for p in "ABC"], ["write"])
        graph.add_edge("write", "join")
        return graph.compile()

    await streamed(serve, build, completed(ANSWER))


@pytest.mark.parametrize("text", ["", "Let me look."])
async def test_text_beside_calls_is_the_agents_own(serve: Serve, text: str) -> None:
    """The agent's text beside its calls is its own, and no part of the answer."""

    def build() -> Any:
        return create_agent(Model(script=[calls(LOOK, text=text), last_result()]), [weather])

    run = await streamed(serve, build, completed("I read: sun in Bonn", 1, 1))
    assert run.spoken() == f"{text}I read: sun in Bonn"


@does_not_serve(
    "langchain",
    "`PIIMiddleware` in a stream",
    "The stream is ahead of redaction: `retract` and the redacted text follow.",
)
async def test_stream_is_ahead_of_redaction(serve: Serve) -> None:
    """Text is streamed before the agent redacts it; a reader that honours `retract` drops it."""
    hides = PIIMiddleware("email", strategy="redact", apply_to_output=True)

    def build() -> Any:
        return create_agent(speaker("Ask bob@example.com now."), [], middleware=[hides])

    run = await streamed(serve, build, completed("Ask [REDACTED_EMAIL] now."))
    assert "retract" in names_of(run.events)
