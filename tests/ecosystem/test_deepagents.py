"""deepagents: plans, files and tasks; their turns, limits, failures and answers."""

from typing import Any

import pytest
from deepagents import create_deep_agent
from deepagents.middleware.subagents import CompiledSubAgent
from langchain.agents import create_agent
from langchain.agents.middleware import TodoListMiddleware
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import completed, interrupted, limited
from tests.ecosystem.model import Asked, Line, Model, call, calls, last_result, loops
from tests.ecosystem.reports import SubAgent
from tests.ecosystem.serves import does_not_serve, serves
from tests.ecosystem.toolbox import offline, weather

LOOK = call("weather", city="Bonn")
WAITS = "Waits for a human, who cannot answer yet: 500 `interrupted`."


def task(to: str) -> Any:
    """A task for a sub-agent."""
    return call("task", description="look at Bonn", subagent_type=to)


def sub_agent(name: str, model: Model, *tools: Any) -> Any:
    """A sub-agent of a deep agent."""
    return {
        "name": name,
        "description": f"Is {name}.",
        "system_prompt": f"You are {name}.",
        "model": model,
        "tools": list(tools),
    }


@serves("deepagents", "files, with `TodoListMiddleware`", "Tools of the agent like any other.")
async def test_plans_and_files(serve: Serve) -> None:
    """A deep agent plans, writes a file, reads it again and answers."""
    plan = [{"content": "look", "status": "in_progress"}]
    script = [
        calls(call("write_todos", todos=plan)),
        calls(call("write_file", file_path="/a.txt", content="sunny")),
        calls(call("read_file", file_path="/a.txt")),
        lambda asked: f"The file says sunny: {'sunny' in asked.results[-1]}",
    ]

    def build() -> Any:
        plans = TodoListMiddleware()
        return create_deep_agent(model=Model(script=script), tools=[weather], middleware=[plans])

    for run in await serve(build, completed("The file says sunny: True", 3, 3)):
        assert sorted(run.outcomes) == ["read_file", "write_file", "write_todos"]


@serves("deepagents", "`task`", "One call of the agent; the sub-agent has turns of its own.")
@pytest.mark.parametrize("to", ["scout", "general-purpose"])
async def test_task_is_one_turn_and_one_call(serve: Serve, to: str) -> None:
    """A task is one turn and one call; its sub-agent has its own turns."""

    def reply(asked: Asked) -> Line:
        if asked.question == "look at Bonn":
            return last_result("scouted") if asked.results else calls(LOOK)
        return last_result() if asked.results else calls(task(to))

    def build() -> Any:
        model = Model(script=[reply])
        subagents: Any = [sub_agent("scout", model, weather)]
        return create_deep_agent(model=model, tools=[weather], subagents=subagents)

    for run in await serve(build, completed("I read: scouted: sun in Bonn", 1, 1)):
        assert run.sub_agents == [SubAgent(to, 1, 1, "task")]


async def test_compiled_sub_agent(serve: Serve) -> None:
    """A sub-agent may be an agent of the user's own."""

    def build() -> Any:
        scout = create_agent(
            Model(script=[calls(LOOK), last_result("scouted")]), [weather], name="scout"
        )
        compiled = CompiledSubAgent(name="scout", description="Scouts.", runnable=scout)
        model = Model(script=[calls(task("scout")), last_result()])
        return create_deep_agent(model=model, subagents=[compiled])

    for run in await serve(build, completed("I read: scouted: sun in Bonn", 1, 1)):
        assert run.sub_agents == [SubAgent("scout", 1, 1, "task")]


@serves("deepagents", "`task` with `mode='fork'`", "As any other task.")
@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
async def test_forked_sub_agent_has_its_own_turns(serve: Serve) -> None:
    """A sub-agent that continues the conversation has its own turns, too."""

    def reply(asked: Asked) -> Line:
        is_fork = "look at Bonn" in asked.question
        if asked.results:
            return last_result("scouted" if is_fork else "I read")
        return calls(LOOK) if is_fork else calls(task("scout"))

    def build() -> Any:
        model = Model(script=[reply])
        fork = {**sub_agent("scout", model, weather), "mode": "fork"}
        subagents: Any = [fork]
        return create_deep_agent(model=model, tools=[weather], subagents=subagents)

    for run in await serve(build, completed("I read: scouted: sun in Bonn", 1, 1)):
        assert run.sub_agents == [SubAgent("scout", 1, 1, "task")]


async def test_exception_in_a_sub_agent_is_guarded(serve: Serve) -> None:
    """A tool of a sub-agent is guarded: the sub-agent reads the failure."""

    def build() -> Any:
        scout = Model(script=[calls(call("offline", city="Bonn")), last_result("scouted")])
        model = Model(script=[calls(task("scout")), last_result()])
        subagents: Any = [sub_agent("scout", scout, offline)]
        return create_deep_agent(model=model, subagents=subagents)

    answer = "I read: scouted: Tool offline failed: ConnectionError"
    for run in await serve(build, completed(answer, 1, 1)):
        assert run.outcomes == {"offline": ["tool_error"], "task": ["completed"]}


@serves("deepagents", "`create_deep_agent`", "At the limit it concludes with its own instructions.")
@pytest.mark.parametrize("limit", [1, 3])
async def test_deep_agent_is_asked_once_more_at_the_limit(serve: Serve, limit: int) -> None:
    """An endless deep agent is asked once more, without tools, with its instructions."""
    model = Model(script=[loops(LOOK)])

    def build() -> Any:
        return create_deep_agent(model=model, tools=[weather], system_prompt="You scout.")

    runs = await serve(build, limited("concluded", limit, limit), max_iterations=limit)
    for run in runs:
        asked = run.calls_of(model)
        assert len(asked) == limit + 1
        assert asked[-1].tools == ()
        assert "You scout." in asked[-1].instructions
        assert asked[-1].question == "go"


async def test_endless_sub_agent_ends_at_the_ceiling(serve: Serve) -> None:
    """The ceiling stops an endless sub-agent; the deep agent concludes."""
    scout, model = Model(script=[loops(LOOK)]), Model(script=[loops(task("scout"))])

    def build() -> Any:
        subagents: Any = [sub_agent("scout", scout, weather)]
        return create_deep_agent(model=model, subagents=subagents)

    expected = limited("concluded", 1, 1, limit="model_calls")
    for run in await serve(build, expected, max_iterations=3):
        assert len(run.calls_of(scout)) + len(run.calls_of(model)) <= 16


@does_not_serve("deepagents", "`interrupt_on`", WAITS)
async def test_interrupt_on_a_tool(serve: Serve) -> None:
    """A deep agent may let a human decide on a tool."""

    def build() -> Any:
        model = Model(script=[calls(LOOK), last_result()])
        return create_deep_agent(
            model=model,
            tools=[weather],
            interrupt_on={"weather": True},
            checkpointer=InMemorySaver(),
        )

    await serve(build, interrupted(1, 0))


async def test_interrupt_on_a_sub_agents_tool(serve: Serve) -> None:
    """A sub-agent that lets a human decide stops the run."""

    def build() -> Any:
        scout = Model(script=[calls(LOOK), last_result("scouted")])
        spec = {**sub_agent("scout", scout, weather), "interrupt_on": {"weather": True}}
        model = Model(script=[calls(task("scout")), last_result()])
        subagents: Any = [spec]
        return create_deep_agent(model=model, subagents=subagents, checkpointer=InMemorySaver())

    await serve(build, interrupted(1, 1))


class Finding(BaseModel):
    """What is wanted."""

    city: str


@serves("deepagents", "`response_format`", "`output` has the structured response.")
async def test_response_format_gives_output(serve: Serve) -> None:
    """A deep agent with a response format has output."""

    def build() -> Any:
        model = Model(script=[calls(LOOK), calls(call("Finding", city="Bonn"))])
        return create_deep_agent(model=model, tools=[weather], response_format=Finding)

    for run in await serve(build, completed(None, 1, 1)):
        assert run.body["output"] == {"city": "Bonn"}


async def test_large_result_is_a_call(serve: Serve) -> None:
    """A result that the library moves into a file is a call like any other."""

    def reply(asked: Asked) -> Line:
        if len(asked.results) > 1:
            return f"I read the file: {'sun' in asked.results[-1]}"
        if asked.results:
            found = [word for word in asked.results[0].split() if word.startswith("/")]
            path = found[0].rstrip(".,:'\"`")
            return calls(call("read_file", file_path=path))
        return calls(call("weather", city="sun " * 60_000))

    def build() -> Any:
        return create_deep_agent(model=Model(script=[reply]), tools=[weather])

    await serve(build, completed("I read the file: True", 2, 2))
