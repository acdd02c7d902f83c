"""At the iteration limit the service stops a run from outside, and the run still answers."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from app.runs.events import IterationLimitReached
from app.runs.model import Outcome
from tests import fakes
from tests.service import Served, served

pytestmark = pytest.mark.asyncio(loop_scope="module")
kinds = pytest.mark.parametrize("kind", fakes.KINDS)


def _runs_on(parallel: int = 1) -> fakes.ScriptedModel:
    return fakes.ScriptedModel(script=fakes.never_stops("look", parallel=parallel))


@pytest.fixture(scope="module")
def models() -> dict[str, fakes.ScriptedModel]:
    """The model of each agent; `two` would answer after two turns."""
    found = {f"{n}-{kind}": _runs_on(n) for n in (1, 3) for kind in fakes.KINDS}
    two = fakes.calls_then_answers("look", turns=2)
    return found | {f"two-{kind}": fakes.ScriptedModel(script=two) for kind in fakes.KINDS}


@pytest.fixture(scope="module")
def agents(models: dict[str, fakes.ScriptedModel]) -> dict[str, Any]:
    tools = fakes.ToolDesk().tools()
    return {
        name: fakes.build(name.partition("-")[2], model, tools) for name, model in models.items()
    }


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk(agents: dict[str, Any]) -> AsyncIterator[Served]:
    async with served(agents) as service:
        yield service
        service.books_balance()


@kinds
@pytest.mark.parametrize("limit", [1, 3, 10])
@pytest.mark.parametrize("parallel", [1, 3])
async def test_endless_model_is_asked_once_more(
    desk: Served, models: dict[str, fakes.ScriptedModel], kind: str, limit: int, parallel: int
) -> None:
    """An endless model is asked N times, and once more with the agent's own prompt."""
    model = models[f"{parallel}-{kind}"]
    model.asked.clear()
    response = await desk.ask(agent=f"{parallel}-{kind}", max_iterations=limit)
    run = response.json()
    assert (response.status_code, run["outcome"]) == (200, "iteration_limit")
    assert (run["iterations"], run["iteration_limit"]) == (limit, limit)
    assert run["tool_calls"] == limit * parallel
    assert len(model.asked) == limit + 1
    assert model.asked[-1][0].text == fakes.SYSTEM_PROMPT
    assert run["answer"]
    assert "Agent stopped" not in run["answer"]
    end = desk.end_of(run["run_id"])
    assert (end.outcome, end.tool_calls) == (Outcome.ITERATION_LIMIT, limit * parallel)
    facts = [f for f in desk.facts_of(IterationLimitReached) if f.run_id == run["run_id"]]
    assert len(facts) == 1


@kinds
async def test_limit_stops_a_run_that_was_about_to_answer(desk: Served, kind: str) -> None:
    """An agent that would have answered next is still stopped at its limit."""
    run = (await desk.ask(agent=f"two-{kind}", max_iterations=2)).json()
    assert (run["outcome"], run["iterations"]) == ("iteration_limit", 2)
    run = (await desk.ask(agent=f"two-{kind}", max_iterations=3)).json()
    assert run["outcome"] == "completed"


async def test_default_limit_is_that_of_the_service(agents: dict[str, Any]) -> None:
    """A caller who names no limit gets the service's."""
    async with served(agents, max_iterations=2) as desk:
        for kind in fakes.KINDS:
            assert (await desk.ask(agent=f"1-{kind}")).json()["iterations"] == 2
            assert (await desk.ask(agent=f"1-{kind}", max_iterations=3)).status_code == 422


async def test_force_answers_with_a_fixed_sentence(
    agents: dict[str, Any], models: dict[str, fakes.ScriptedModel]
) -> None:
    """With `force` no model writes the answer, and it is not the library's sentence."""
    async with served(agents, early_stopping="force") as desk:
        for kind in fakes.KINDS:
            models[f"1-{kind}"].asked.clear()
            run = (await desk.ask(agent=f"1-{kind}", max_iterations=2)).json()
            assert run["answer"] == "No answer was found within the limit of 2 iterations."
            assert len(models[f"1-{kind}"].asked) == 2


async def test_limit_of_an_executor_counts() -> None:
    """A limit set on an AgentExecutor counts, and its time limit never answers."""
    agent = fakes.build(
        "agent_executor",
        _runs_on(),
        fakes.ToolDesk().tools(),
        max_iterations=3,
        max_execution_time=0.001,
    )
    async with served({"a": agent}) as desk:
        run = (await desk.ask()).json()
        assert (run["outcome"], run["iterations"]) == ("iteration_limit", 3)
        assert (await desk.client.get("/agents")).json()["agents"][0]["iteration_limit"] == 3
