"""langgraph-supervisor and langgraph-swarm: turns, hand-overs, limits and answers of teams."""

from collections.abc import Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import create_react_agent
from langgraph_supervisor import create_supervisor
from langgraph_supervisor.handoff import create_forward_message_tool
from langgraph_swarm import create_handoff_tool, create_swarm
from pydantic import BaseModel

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import completed, limited
from tests.ecosystem.model import Asked, Line, Model, call, calls, loops
from tests.ecosystem.reports import assert_agree
from tests.ecosystem.served import serving
from tests.ecosystem.serves import serves
from tests.ecosystem.toolbox import offline, said_by, weather

pytestmark = [
    pytest.mark.filterwarnings("ignore:create_react_agent has been moved"),
    pytest.mark.filterwarnings("ignore:AgentState.* has been moved"),
]
LOOK = call("weather", city="Bonn")
QUESTION = "Where is the sun?"


def after(text: str, *lines: tuple[str, Line], start: Line) -> Model:
    """A model of a team, whose line is chosen by what it has read so far."""

    def reply(asked: Asked) -> Line:
        chosen = start
        for mark, line in lines:
            chosen = line if mark in asked.text else chosen
        return chosen

    return Model(script=[reply], model_name=text)


def boss() -> Model:
    """Sends the question to the north, then to the south, and sums up."""
    return after(
        "boss",
        ("north says", calls("transfer_to_south")),
        ("south says", "Sun everywhere."),
        start=calls("transfer_to_north"),
    )


def member(name: str, turns: int) -> Model:
    """Looks so many things up, and says so in its own name."""
    lines: list[tuple[str, Line]] = [
        (f"sun in {name}{n}", calls(call("weather", city=f"{name}{n + 1}"))) for n in range(turns)
    ]
    lines.append((f"sun in {name}{turns - 1}", f"{name} says sun"))
    return after(name, *lines, start=calls(call("weather", city=f"{name}0")))


def team(maker: Any, lead: Model, members: Sequence[Model], **options: Any) -> Any:
    """A supervisor of these members, compiled."""
    agents = [maker(m, [weather], name=m.model_name) for m in members]
    return create_supervisor(agents, model=lead, **options).compile()


@serves(
    "langgraph-supervisor",
    "`create_supervisor`",
    "A hand-over is a turn; the turns of its members add to its own.",
)
@pytest.mark.parametrize("output_mode", ["full_history", "last_message"])
@pytest.mark.parametrize("maker", [create_agent, create_react_agent])
async def test_turns_of_a_supervisor_and_its_members_add_up(
    serve: Serve, maker: Any, output_mode: str
) -> None:
    """Two hand-overs, and three turns of the members: five turns one after the other."""

    def build() -> Any:
        members = (member("north", 2), member("south", 1))
        return team(maker, boss(), members, output_mode=output_mode, prompt="You lead.")

    for run in await serve(build, completed("Sun everywhere.", 5, 5), question=QUESTION):
        assert sorted(run.outcomes) == ["transfer_to_north", "transfer_to_south", "weather"]
        if run.mode == "stream":
            assert run.spoken() == "Sun everywhere."


async def test_supervisor_without_hand_over_messages(serve: Serve) -> None:
    """A supervisor may leave its hand-overs out of the conversation."""

    def build() -> Any:
        members = (member("north", 1), member("south", 1))
        return team(create_agent, boss(), members, add_handoff_messages=False)

    await serve(build, completed("Sun everywhere.", 4, 4))


async def test_forwarded_message_is_the_answer(serve: Serve) -> None:
    """The text of a member that a supervisor forwards is the answer."""
    lead = after("boss", ("north says", calls(call("forward_message", from_agent="north"))),
                 start=calls("transfer_to_north"))  # fmt: skip

    def build() -> Any:
        forward = create_forward_message_tool("supervisor")
        return team(create_agent, lead, [member("north", 1)], tools=[forward])

    await serve(build, completed("north says sun", 3, 3))


@pytest.mark.parametrize("maker", [create_agent, create_react_agent])
@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_active_agent_of_a_team_concludes(serve: Serve, maker: Any, limit: int) -> None:
    """The active agent of a team concludes, with its own instructions and no turn twice."""
    lead = Model(script=[loops("transfer_to_north", answer="boss concludes")], model_name="boss")
    north = Model(script=[loops(LOOK, answer="north concludes")], model_name="north")

    def build() -> Any:
        return team(maker, lead, [north], prompt="You lead.")

    runs = await serve(build, limited(None, limit, limit), max_iterations=limit, question=QUESTION)
    for run in runs:
        asked = [*run.calls_of(lead), *run.calls_of(north)]
        assert len(asked) == limit + 1
        assert run.body["answer"] in ("boss concludes", "north concludes")
        assert all(QUESTION in each.text for each in asked)


async def test_exception_in_a_member_is_guarded(serve: Serve) -> None:
    """A tool of a member is guarded: the member reads the failure."""

    def build() -> Any:
        north = after("north", ("failed", "north says nothing"), start=calls(_offline()))
        lead = after("boss", ("north says", "Nothing."), start=calls("transfer_to_north"))
        agents: list[Any] = [create_agent(north, [offline], name="north")]
        return create_supervisor(agents, model=lead).compile()

    for run in await serve(build, completed("Nothing.", 2, 2)):
        assert run.outcomes["offline"] == ["tool_error"]


def _offline() -> Any:
    return call("offline", city="Bonn")


class Report(BaseModel):
    """What a supervisor owes."""

    text: str


async def test_structured_response_of_a_supervisor_is_no_turn(serve: Serve) -> None:
    """The call for a supervisor's structured response, which its graph drops, is no turn."""

    def reply(asked: Asked) -> Line:
        if "Report" in asked.tools:
            return calls(call("Report", text="sun"))
        return "Done." if "north says" in asked.text else calls("transfer_to_north")

    def build() -> Any:
        lead = Model(script=[reply], model_name="boss")
        return team(create_agent, lead, [member("north", 1)], response_format=Report)

    await serve(build, completed("Done.", 2, 2))


def swarm(desk: Model, pilot: Model, **options: Any) -> Any:
    """Two agents that hand over to each other; the desk begins."""
    agents: list[Any] = [
        create_agent(
            desk, [create_handoff_tool(agent_name="pilot"), weather],
            system_prompt="You are the desk.", name="desk",
        ),
        create_agent(
            pilot, [create_handoff_tool(agent_name="desk"), weather],
            system_prompt="You fly.", name="pilot",
        ),
    ]  # fmt: skip
    return create_swarm(agents, default_active_agent="desk").compile(**options)


@serves(
    "langgraph-swarm",
    "`create_swarm`, `create_handoff_tool`",
    "A hand-over is a turn; the active agent answers.",
)
async def test_swarm_hands_over_and_answers(serve: Serve) -> None:
    """The desk hands over, the pilot looks something up and answers."""

    def build() -> Any:
        desk = Model(script=[calls("transfer_to_pilot")], model_name="desk")
        pilot = after("pilot", ("sun in Bonn", "We can fly."), start=calls(LOOK))
        return swarm(desk, pilot)

    for run in await serve(build, completed("We can fly.", 2, 2)):
        if run.mode == "stream":
            assert run.spoken() == "We can fly."


@pytest.mark.parametrize("beside", [[], [LOOK]], ids=["alone", "beside a call"])
@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_endless_hand_overs_stop_at_the_limit(
    serve: Serve, limit: int, beside: Sequence[Any]
) -> None:
    """Two agents that only hand over to each other stop after N turns."""
    # The library itself leaves the call beside a hand-over without its result.
    desk, pilot = (
        Model(script=[loops(f"transfer_to_{to}", *beside)], model_name=name, picky=not beside)
        for name, to in (("desk", "pilot"), ("pilot", "desk"))
    )

    expected = limited("concluded", limit, limit * (1 + len(beside)))
    runs = await serve(lambda: swarm(desk, pilot), expected, max_iterations=limit)
    for run in runs:
        assert len(run.calls_of(desk)) + len(run.calls_of(pilot)) == limit + 1


async def test_swarm_continues_with_its_active_agent() -> None:
    """In a thread the next question goes to the agent that was active last."""

    def pilot(asked: Asked) -> Line:
        return f"The pilot was asked: {asked.question}"

    desk = Model(script=[calls("transfer_to_pilot")], model_name="desk")
    agent = swarm(desk, Model(script=[pilot], model_name="pilot"), checkpointer=InMemorySaver())
    async with serving({"team": agent}) as service:
        first = await service.ask("team", question="one", thread_id="t")
        assert_agree([first], completed("The pilot was asked: one", 1, 1))
        second = await service.ask("team", question="two", thread_id="t")
        assert_agree([second], completed("The pilot was asked: two", 0, 0))


async def test_agent_in_a_tool_of_a_swarm_is_counted_apart(serve: Serve) -> None:
    """The work of an agent in a tool of a swarm's agent is its own."""

    def build() -> Any:
        guide = create_agent(member("guide", 2), [weather], name="guide")

        @tool
        async def ask_guide() -> str:
            """Ask a guide."""
            return await said_by(guide)

        pilot = after("pilot", ("guide says", "We can fly."), start=calls("ask_guide"))
        desk = Model(script=[calls("transfer_to_pilot")], model_name="desk")
        agents: list[Any] = [
            create_agent(desk, [create_handoff_tool(agent_name="pilot")], name="desk"),
            create_agent(pilot, [ask_guide], name="pilot"),
        ]
        return create_swarm(agents, default_active_agent="desk").compile()

    for run in await serve(build, completed("We can fly.", 2, 2)):
        (guide,) = run.sub_agents
        assert (guide.name, guide.iterations, guide.tool_calls) == ("guide", 2, 2)
