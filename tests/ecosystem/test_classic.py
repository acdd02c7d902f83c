"""Executors of langchain-classic of every kind: their turns, their limit, their own parsers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_classic import agents as classic
from langchain_classic.agents import AgentExecutor
from langchain_core.messages import AIMessage
from langchain_core.prompts import BasePromptTemplate, ChatPromptTemplate, PromptTemplate
from langchain_core.tools import Tool, tool

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import Expected, completed, failed, limited
from tests.ecosystem.model import Asked, Line, Model, call, calls
from tests.ecosystem.served import WITHOUT_STORE
from tests.ecosystem.serves import serves
from tests.ecosystem.toolbox import TOOLS_PROMPT

TEXT_PROMPT = PromptTemplate.from_template(
    "You travel. Tools: {tools} {tool_names}\nQuestion: {input}\n{agent_scratchpad}"
)
XML_PROMPT = PromptTemplate.from_template("You travel. {tools}\n{input}\n{agent_scratchpad}")
ASK_PROMPT = PromptTemplate.from_template("You travel.\n{input}\n{agent_scratchpad}")
JSON_PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "You travel. {tools} {tool_names}"),
        ("human", "{input}"),
        ("placeholder", "{agent_scratchpad}"),
    ]
)
STRUCTURED_PROMPT = ChatPromptTemplate.from_messages(
    [("system", "You travel. {tools} {tool_names}"), ("human", "{input}\n{agent_scratchpad}")]
)
FIXED = "No answer was found within the limit of {} iterations."


def look(city: str) -> str:
    """Look up the weather of a city."""
    return f"sun in {city}"


def _blob(action: str, given: Any) -> str:
    return f"```json\n{json.dumps({'action': action, 'action_input': given})}\n```"


@dataclass(frozen=True)
class Kind:
    """A kind of executor, and how its model writes a call, an answer and nonsense."""

    name: str
    create: Callable[..., Any]
    prompt: BasePromptTemplate[Any]
    asks: Line
    answers: str
    nonsense: str = "Hm."

    def executor(self, model: Model, **options: Any) -> AgentExecutor:
        """An executor of this kind."""
        return self.of(model, look, **options)

    def of(self, model: Model, work: Callable[..., str], **options: Any) -> AgentExecutor:
        """One whose only tool does this."""
        named: Any = tool(self.tool)(work)
        tools = [Tool(self.tool, work, "Look.")] if self.name == "self_ask" else [named]
        agent = self.create(model, tools, self.prompt)
        return AgentExecutor(agent=agent, tools=tools, **options)

    @property
    def tool(self) -> str:
        """The name of its tool: one kind has a fixed one."""
        return "Intermediate Answer" if self.name == "self_ask" else "weather"


LOOK = calls(call("weather", city="Bonn"))
FUNCTION = AIMessage(
    "", additional_kwargs={"function_call": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
)
KINDS = [
    Kind("tool_calling", classic.create_tool_calling_agent, TOOLS_PROMPT, LOOK, "seven"),
    Kind("openai_tools", classic.create_openai_tools_agent, TOOLS_PROMPT, LOOK, "seven"),
    Kind(
        "openai_functions", classic.create_openai_functions_agent, TOOLS_PROMPT, FUNCTION, "seven"
    ),
    Kind(
        "react",
        classic.create_react_agent,
        TEXT_PROMPT,
        "Thought: look\nAction: weather\nAction Input: Bonn",
        "Thought: I know\nFinal Answer: seven",
    ),
    Kind(
        "structured_chat",
        classic.create_structured_chat_agent,
        STRUCTURED_PROMPT,
        _blob("weather", {"city": "Bonn"}),
        _blob("Final Answer", "seven"),
    ),
    Kind(
        "json_chat",
        classic.create_json_chat_agent,
        JSON_PROMPT,
        _blob("weather", "Bonn"),
        _blob("Final Answer", "seven"),
    ),
    Kind(
        "xml",
        classic.create_xml_agent,
        XML_PROMPT,
        "<tool>weather</tool><tool_input>Bonn</tool_input>",
        "<final_answer>seven</final_answer>",
    ),
    Kind(
        "self_ask",
        classic.create_self_ask_with_search_agent,
        ASK_PROMPT,
        "Yes.\nFollow up: Bonn",
        "So the final answer is: seven",
    ),
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
# The parsers of the other kinds take any text for an answer.
STRICT = [kind for kind in KINDS if kind.name in ("react", "json_chat", "self_ask")]
strict = pytest.mark.parametrize("kind", STRICT, ids=lambda kind: kind.name)


def turns(*lines: Line) -> Model:
    """A model that says these one after the other in each run, whatever it is asked."""

    def reply(asked: Asked) -> Line:
        so_far = len(model.in_run(asked.run_id))
        return lines[min(so_far, len(lines)) - 1]

    model = Model(script=[reply])
    return model


@serves(
    "langchain-classic",
    "`AgentExecutor` of every kind",
    "Its own parser reads its answers, at the limit too.",
)
@kinds
async def test_executor_answers_in_one_turn(serve: Serve, kind: Kind) -> None:
    """An executor looks something up and answers: one turn, with its parser's result."""
    model = turns(kind.asks, kind.answers)
    for run in await serve(lambda: kind.executor(model), completed("seven", 1, 1)):
        assert len(run.calls_of(model)) == 2
        assert "sun in Bonn" in run.calls_of(model)[1].text


@kinds
async def test_executor_is_asked_once_more_at_the_limit(serve: Serve, kind: Kind) -> None:
    """At the limit the executor's model is asked once more, and its own parser reads the answer."""
    model = turns(kind.asks, kind.asks, kind.answers)
    expected = limited("seven", 2, 2)
    runs = await serve(
        lambda: kind.executor(model), expected, max_iterations=2, question="Where is the sun?"
    )
    for run in runs:
        asked = run.calls_of(model)
        assert len(asked) == 3
        assert asked[-1].tools == ()
        for text in ("You travel.", "Where is the sun?"):
            assert text in asked[-1].text
        assert asked[-1].text.count("sun in Bonn") == 2


@kinds
async def test_model_that_will_not_stop_has_no_answer(serve: Serve, kind: Kind) -> None:
    """A model that asks for a tool even then has not answered."""
    model = turns(kind.asks)
    expected = limited(FIXED.format(2), 2, 2)
    await serve(lambda: kind.executor(model), expected, max_iterations=2, modes=WITHOUT_STORE)


@kinds
async def test_last_answer_without_the_form_is_an_answer(serve: Serve, kind: Kind) -> None:
    """A last answer without the required form is still an answer."""
    model = turns(kind.asks, kind.asks, "It is seven.")
    expected = limited("It is seven.", 2, 2)
    await serve(lambda: kind.executor(model), expected, max_iterations=2, modes=WITHOUT_STORE)


@strict
async def test_unparsable_turn_counts(serve: Serve, kind: Kind) -> None:
    """Nonsense that the executor returns to its model is a turn without a call."""
    model = turns(kind.nonsense, kind.asks, kind.answers)

    def build() -> Any:
        return kind.executor(model, handle_parsing_errors=True)

    await serve(build, completed("seven", 2, 1))


@serves("langchain-classic", "a parse error that nobody handles", "500 `model_failed`.")
@strict
async def test_unhandled_parse_error_is_the_models_failure(serve: Serve, kind: Kind) -> None:
    """Nonsense that the executor does not handle is a broken answer of its model."""
    await serve(lambda: kind.executor(turns(kind.nonsense)), _model_failed())


def _model_failed() -> Expected:
    return failed("model_failed", None, 0, retryable=True)


@serves(
    "langchain-classic",
    "`max_iterations`, `max_execution_time`",
    "Its limit is the agent's; its sentence is no answer.",
)
@kinds
async def test_own_limit_of_the_executor_counts(serve: Serve, kind: Kind) -> None:
    """The executor's own limit is the agent's; its sentence is no answer."""
    model = turns(kind.asks, kind.asks, kind.answers)

    def build() -> Any:
        return kind.executor(model, max_iterations=2, max_execution_time=0.5)

    await serve(build, limited("seven", 2, 2), modes=WITHOUT_STORE)


@serves(
    "langchain-classic", "`return_intermediate_steps`", "The answer is the executor's `output`."
)
async def test_intermediate_steps(serve: Serve) -> None:
    """An executor that returns its steps as well has the same answer."""
    for kind in KINDS[:1]:
        model = turns(kind.asks, kind.answers)

        def build(kind: Kind = kind, model: Model = model) -> Any:
            return kind.executor(model, return_intermediate_steps=True)

        await serve(build, completed("seven", 1, 1))


@serves("langchain-classic", "tools that raise", "The model reads what failed.")
@kinds
async def test_exception_of_a_tool_ends_no_run(serve: Serve, kind: Kind) -> None:
    """A tool that raises never ends an executor's run."""

    def broken(city: str) -> str:
        """Look up the weather of a city."""
        raise ConnectionError("down")

    model = turns(kind.asks, kind.answers)

    def build() -> Any:
        return kind.of(model, broken)

    for run in await serve(build, completed("seven", 1, 1), modes=WITHOUT_STORE):
        assert run.outcomes == {kind.tool: ["tool_error"]}
        assert f"Tool {kind.tool} failed: ConnectionError" in run.calls_of(model)[1].text
