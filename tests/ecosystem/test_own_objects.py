"""Kind 11: the user's objects stay unchanged, while they are served and afterwards."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain.agents.middleware import ToolRetryMiddleware
from langchain_classic.agents import AgentExecutor, create_tool_calling_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import BaseTool, tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, create_react_agent
from langgraph.pregel import Pregel

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import completed, limited
from tests.ecosystem.model import Model, call, calls, last_result, loops
from tests.ecosystem.reports import assert_agree
from tests.ecosystem.served import MODES, serving
from tests.ecosystem.serves import serves
from tests.ecosystem.toolbox import TOOLS_PROMPT, asking, loop_of, offline, weather

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
LOOK = calls(call("weather", city="Bonn"))
ASKS_OFFLINE = calls(call("offline", city="Bonn"))
READ, FAILED = "I read: sun in Bonn", "I read: Tool offline failed: ConnectionError"


def of_create_agent(script: Any) -> Any:
    """An agent of create_agent."""
    return create_agent(Model(script=script), [weather, offline])


def of_create_react_agent(script: Any) -> Any:
    """The older prebuilt agent."""
    return create_react_agent(Model(script=script), [weather, offline])


def of_a_graph(script: Any) -> Any:
    """A hand-made graph."""
    model = Model(script=script).bind_tools([weather, offline])
    graph = StateGraph(MessagesState)
    graph.add_node("agent", loop_of(asking(model), [weather, offline]).compile())
    graph.add_edge(START, "agent")
    return graph.compile()


def of_deepagents(script: Any) -> Any:
    """A deep agent."""
    return create_deep_agent(model=Model(script=script), tools=[weather, offline])


def of_an_executor(script: Any) -> Any:
    """A classic executor."""
    tools: list[BaseTool] = [weather, offline]
    agent = create_tool_calling_agent(Model(script=script), tools, TOOLS_PROMPT)
    return AgentExecutor(agent=agent, tools=tools)


MAKERS = [of_create_agent, of_create_react_agent, of_a_graph, of_deepagents, of_an_executor]
makers = pytest.mark.parametrize("make", MAKERS)


def tools_of(agent: Any) -> dict[str, BaseTool]:
    """The tool objects that an agent has, by where they are."""
    if isinstance(agent, AgentExecutor):
        return {tool.name: tool for tool in agent.tools}
    found: dict[str, BaseTool] = {}
    for name, node in agent.nodes.items():
        bound = node.bound
        if isinstance(bound, ToolNode):
            found |= {f"{name}.{tool}": held for tool, held in bound.tools_by_name.items()}
        elif isinstance(bound, Pregel):
            found |= {f"{name}.{tool}": held for tool, held in tools_of(bound).items()}
    return found


def insides(tool: BaseTool) -> dict[str, Any]:
    """What of a tool a wrapper could have replaced."""
    return copy.copy(vars(tool))


@serves(
    "langgraph", "one graph under two names", "Served twice; its tools and nodes stay as they are."
)
@makers
async def test_agent_under_two_names_answers_alike(
    tmp_path: Path, make: Callable[[Any], Any]
) -> None:
    """One object under two names answers alike, and its tools are not wrapped twice."""
    agent = make([ASKS_OFFLINE, last_result()])
    before = tools_of(agent)
    assert before
    inner = {name: insides(tool) for name, tool in before.items()}
    async with serving({"one": agent, "two": agent}, tmp_path) as service:
        for name in ("one", "two", "one"):
            for mode in MODES:
                run = await service.ask(name, mode)
                assert_agree([run], completed(FAILED, 1, 1))
                assert run.outcomes == {"offline": ["tool_error"]}
    after = tools_of(agent)
    assert {name: id(tool) for name, tool in after.items()} == {
        name: id(tool) for name, tool in before.items()
    }
    assert {name: insides(tool) for name, tool in after.items()} == inner


@makers
async def test_shared_tools_are_guarded_apart(tmp_path: Path, make: Callable[[Any], Any]) -> None:
    """Two agents with the same tool objects are guarded apart."""
    agents = {"one": make([ASKS_OFFLINE, last_result()]), "two": make([LOOK, last_result()])}
    async with serving(agents) as service:
        assert_agree([await service.ask("one")], completed(FAILED, 1, 1))
        assert_agree([await service.ask("two")], completed(READ, 1, 1))
    assert "_run" not in vars(offline)


async def ask_plainly(agent: Any) -> str:
    """What a program gets that asks the agent by itself; or what is raised."""
    inputs: Any = {"messages": [HumanMessage("go")], "input": "go"}
    inputs = {"input": "go"} if isinstance(agent, AgentExecutor) else inputs
    try:
        state = await agent.ainvoke(inputs)
    except ConnectionError as raised:
        return f"raised: {raised}"
    return str(state["output"] if "output" in state else state["messages"][-1].text)


@makers
@pytest.mark.parametrize("script", [[LOOK, last_result()], [ASKS_OFFLINE, last_result()]])
async def test_program_beside_the_service_is_unchanged(
    tmp_path: Path, make: Callable[[Any], Any], script: Any
) -> None:
    """A plain program sees the same agent before, while and after it is served."""
    agent = make(script)
    alone = await ask_plainly(make(script))
    async with serving({"a": agent}, tmp_path) as service:
        served = [await service.ask("a", mode) for mode in MODES]
        assert await ask_plainly(agent) == alone
    assert await ask_plainly(agent) == alone
    assert {run.body["outcome"] for run in served} == {"completed"}


async def test_program_has_no_limit(tmp_path: Path) -> None:
    """A plain program's agent has its tools without limit, even while ours is stopped."""
    model = Model(script=[loops(call("weather", city="Bonn"))])
    agent = create_agent(model, [weather]).with_config(recursion_limit=30)
    async with serving({"a": agent}, tmp_path, max_iterations=2) as service:
        assert_agree([await service.ask("a")], limited("concluded", 2, 2))
        before = len(model.asked)
        with pytest.raises(RecursionError):
            await agent.ainvoke({"messages": [HumanMessage("go")]})
    assert len(model.asked) - before == 15
    assert all(each.tools == ("weather",) for each in model.asked[before:])


async def test_shared_middleware_works_in_both_agents(serve: Serve) -> None:
    """One middleware object in two agents works in each."""
    tries: list[str] = []

    @tool
    async def station(city: str) -> str:
        """Ask a station."""
        tries.append(city)
        if len(tries) % 2:
            raise ConnectionError("busy")
        return f"sun in {city}"

    retrying = ToolRetryMiddleware(max_retries=1, initial_delay=0.01, jitter=False)

    def build() -> Any:
        model = Model(script=[calls(call("station", city="Bonn")), last_result()])
        return create_agent(model, [station], middleware=[retrying])

    await serve(build, completed(READ, 1, 2), modes=("sync",))
    await serve(build, completed(READ, 1, 2), modes=("stream",))
