"""Kind 3: the last answer passes all processing of the agent's prompts and answers."""

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ContextEditingMiddleware,
    PIIMiddleware,
    SummarizationMiddleware,
    after_agent,
    after_model,
    dynamic_prompt,
)
from langchain.agents.middleware.context_editing import ClearToolUsesEdit
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import create_react_agent
from pydantic import BaseModel

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import limited
from tests.ecosystem.model import Asked, Line, Model, call, calls, loops
from tests.ecosystem.serves import serves
from tests.ecosystem.test_last_answer import LOOK, ROLE, check, last_of, looking
from tests.ecosystem.toolbox import asking, loop_of, nothing, weather

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")


@tool
def customer(number: str) -> str:
    """Look a customer up."""
    return "It is ann@example.com"


def _redacts() -> Any:
    return PIIMiddleware(
        "email", strategy="redact", apply_to_output=True, apply_to_tool_results=True
    )


@serves("langchain", "`PIIMiddleware(strategy='redact')`", "The last answer is redacted as well.")
async def test_last_answer_is_redacted(serve: Serve) -> None:
    """At the limit, too, no address reaches the model or the caller."""
    model = Model(script=[loops(call("customer", number="1"), answer="Ask bob@example.com.")])

    def build() -> Any:
        return create_agent(model, [customer], middleware=[_redacts()])

    expected = limited("Ask [REDACTED_EMAIL].", 2, 2)
    for run in await serve(build, expected, max_iterations=2):
        assert "ann@example.com" not in last_of(run, model).text


@serves("langchain", "`after_model`, `after_agent`", "Run at the limit too, on the last answer.")
async def test_hooks_process_the_last_answer(serve: Serve) -> None:
    """The agent processes the last answer as any other."""
    seen: list[str] = []

    @after_model
    async def note(state: Any, runtime: Any) -> None:
        seen.append(str(state["messages"][-1].text))

    @after_agent
    async def sign(state: Any, runtime: Any) -> dict[str, Any]:
        last = state["messages"][-1]
        return {"messages": [AIMessage(f"{last.text}, signed", id=last.id)]}

    def build() -> Any:
        return create_agent(looking("main"), [weather], middleware=[note, sign])

    runs = await serve(build, limited("main concludes, signed", 2, 2), max_iterations=2)
    assert seen.count("main concludes") == len(runs)


@serves("langchain", "`dynamic_prompt`", "The last call has the prompt of its own moment.")
async def test_dynamic_prompt_of_the_last_call(serve: Serve) -> None:
    """Instructions that depend on the state are computed for the last call."""
    model = looking("main")

    @dynamic_prompt
    def prompt(request: Any) -> str:
        return f"You have seen {len(request.messages)} messages."

    def build() -> Any:
        return create_agent(model, [weather], middleware=[prompt])

    for run in await serve(build, limited("main concludes", 2, 2), max_iterations=2):
        assert last_of(run, model).instructions == "You have seen 5 messages."


async def test_context_is_edited_for_the_last_call(serve: Serve) -> None:
    """A middleware edits the context of the last call as well."""
    model = looking("main")

    def build() -> Any:
        edits = [ClearToolUsesEdit(trigger=1, keep=1, placeholder="[cleared]")]
        return create_agent(model, [weather], middleware=[ContextEditingMiddleware(edits=edits)])

    for run in await serve(build, limited("main concludes", 3, 3), max_iterations=3):
        last = last_of(run, model)
        assert (last.text.count("[cleared]"), last.text.count("sun in Bonn")) == (2, 1)


async def test_last_call_has_the_summary(serve: Serve) -> None:
    """An agent with a summarised conversation is asked with the summary."""
    model = looking("main")

    def build() -> Any:
        summing = SummarizationMiddleware(
            model=Model(script=["A SUMMARY"]), trigger=("messages", 4), keep=("messages", 2)
        )
        return create_agent(model, [weather], middleware=[summing])

    for run in await serve(build, limited("main concludes", 4, 4), max_iterations=4):
        assert "A SUMMARY" in last_of(run, model).text


async def test_limit_with_a_parallel_node_and_a_saver(serve: Serve) -> None:
    """A graph has a checkpointer, and a second node beside the tools."""
    model = looking("main")

    def build() -> Any:
        graph = loop_of(asking(model.bind_tools([weather]), ROLE), [weather])
        graph.add_node("audit", nothing)
        graph.add_edge("ask", "audit")
        return graph.compile(checkpointer=InMemorySaver())

    await check(serve, build, model)


async def test_conversation_continues_after_the_limit(serve: Serve) -> None:
    """After an answer at the limit the conversation can continue."""
    model = looking("main")
    saved = create_agent(model, [weather], checkpointer=InMemorySaver())
    await serve(
        lambda: saved, limited("main concludes", 1, 1), max_iterations=1, modes=("sync",),
        thread_id="t",
    )  # fmt: skip
    (run,) = await serve(
        lambda: saved, limited("main concludes", 1, 1), max_iterations=1, modes=("sync",),
        thread_id="t", question="And tomorrow?",
    )  # fmt: skip
    assert "main concludes" in last_of(run, model).text
    assert last_of(run, model).question == "And tomorrow?"


async def test_calls_of_the_last_reply_are_not_made(serve: Serve) -> None:
    """Calls in the last reply are not made; text beside them is the answer."""
    stubborn = Model(script=[calls(LOOK, text="It was sunny.")])

    def build() -> Any:
        return create_agent(stubborn, [weather])

    for run in await serve(build, limited("It was sunny.", 2, 2), max_iterations=2):
        assert len(run.calls_of(stubborn)) == 3


class Forecast(BaseModel):
    """What is wanted."""

    city: str


@pytest.mark.parametrize("limit", [1, 3])
async def test_response_format_at_the_limit(serve: Serve, limit: int) -> None:
    """An agent with a response format has output at the limit, too."""

    def reply(asked: Asked) -> Line:
        if "weather" in asked.tools:
            return calls(LOOK)
        return calls(call("Forecast", city="Bonn")) if asked.tools else "concluded"

    def build() -> Any:
        return create_agent(Model(script=[reply]), [weather], response_format=Forecast)

    for run in await serve(build, limited(None, limit, limit), max_iterations=limit):
        assert run.body["output"] == {"city": "Bonn"}


async def test_a_response_format_of_create_react_agent(serve: Serve) -> None:
    """The older prebuilt agent makes its structured response of the last answer."""

    def reply(asked: Asked) -> Line:
        if "Forecast" in asked.tools:
            return calls(call("Forecast", city="Bonn"))
        return calls(LOOK) if asked.tools else "concluded"

    def build() -> Any:
        return create_react_agent(Model(script=[reply]), [weather], response_format=Forecast)

    for run in await serve(build, limited("concluded", 2, 2), max_iterations=2):
        assert run.body["output"] == {"city": "Bonn"}
