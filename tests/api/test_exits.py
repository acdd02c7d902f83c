"""User code that asks the process to exit ends its own run and nothing else."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests import exits, fakes
from tests.exits import EXITS
from tests.service import Served, served

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLACES = tuple(exits.places(SystemExit))
# There LangChain takes what is no Exception for an answer, and fails over it.
UNSEEN = ("model", "model-thread", "executor-parser-generator")
BEYOND_TOOLS = tuple(name for name in EXITS if name != "exit")


def _agents() -> dict[str, Any]:
    agents: dict[str, Any] = {"fine": exits.answers()}
    for how, leave in EXITS.items():
        agents |= {f"{place}-{how}": agent for place, agent in exits.places(leave).items()}
        for kind in fakes.KINDS:
            for thread in (False, True):
                agent = exits.tool_that_leaves(leave, kind, thread=thread)
                agents[f"tool-{kind}-{'thread' if thread else 'loop'}-{how}"] = agent
    return agents


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk() -> AsyncIterator[Served]:
    async with served(_agents()) as service:
        yield service
        service.books_balance()


async def ends_alone(desk: Served, agent: str, how: str, *, seen: bool = True) -> None:
    """Its run fails as the agent's, plain and streamed, and the next one answers."""
    response = await desk.ask("q", agent)
    assert response.status_code == 500, response.text
    problem = response.json()
    assert (problem["code"], problem["outcome"]) == ("agent_failed", "failed")
    raised = desk.end_of(problem["run_id"]).error
    assert not seen or type(EXITS[how]()).__name__ in _names(raised), raised
    streamed = await desk.client.post(f"/agents/{agent}/stream", json={"question": "q"})
    assert '"code": "agent_failed"' in streamed.text or '"code":"agent_failed"' in streamed.text
    assert streamed.text.rstrip().rpartition("event: ")[2].startswith("end")
    assert (await desk.ask("q", "fine")).json()["answer"] == "fine"


def _names(raised: BaseException | None) -> set[str]:
    """The types of an exception and of those in it."""
    inner = raised.exceptions if isinstance(raised, BaseExceptionGroup) else ()
    names = set().union(*map(_names, inner), _names(raised.__cause__)) if raised else set()
    return names | {type(raised).__name__}


@pytest.mark.parametrize("how", EXITS)
@pytest.mark.parametrize("place", PLACES)
async def test_exit_request_ends_its_own_run_only(desk: Served, place: str, how: str) -> None:
    """A node, model, hook, callback or parser that asks the process to exit ends its run alone."""
    seen = not {place, f"{place}-{how}"} & set(UNSEEN)
    await ends_alone(desk, f"{place}-{how}", how, seen=seen)


@pytest.mark.parametrize("how", BEYOND_TOOLS)
@pytest.mark.parametrize("thread", ["loop", "thread"])
@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_interrupt_in_a_tool_ends_its_run_only(
    desk: Served, kind: str, thread: str, how: str
) -> None:
    """A tool that raises an interrupt of the process ends its run alone."""
    await ends_alone(desk, f"tool-{kind}-{thread}-{how}", how)


@pytest.mark.parametrize("thread", ["loop", "thread"])
@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_sys_exit_in_a_tool_fails_the_tool(desk: Served, kind: str, thread: str) -> None:
    """A tool that calls sys.exit() fails as a tool, and its run goes on."""
    run = (await desk.ask("q", f"tool-{kind}-{thread}-exit", include_steps=True)).json()
    assert (run["outcome"], run["answer"]) == ("completed", "done: q: Tool look failed: SystemExit")
    assert [step["outcome"] for step in run["steps"]] == ["tool_error"]
