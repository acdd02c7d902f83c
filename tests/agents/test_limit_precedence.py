"""Whose limit counts: the request's, else the agent's own, else its setting, else the service's."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from app import settings as configuration
from app.agents.final_answer import fixed_sentence
from app.runs.model import EarlyStopping
from app.settings import AgentSettings
from tests import fakes, loops
from tests.service import served
from watchkeeper import build_agent

pytestmark = pytest.mark.waits

TABLE = {"max_iterations": 4}


def agent(kind: str, **options: Any) -> tuple[Any, fakes.ScriptedModel]:
    """An agent that never stops, and its model."""
    model = loops.asks_times(kind, math.inf)
    tools = fakes.ToolDesk().tools()
    if kind == "built":
        return build_agent(model, tools, **options), model
    return loops.build(kind, model, tools, **options), model


EXECUTORS = ("agent_executor", "react")
WITH_OWN = (*EXECUTORS, "built")
EVERY = (*loops.ALL, "built")


async def reached(
    kinds: Sequence[str], own: dict[str, Any], body: dict[str, Any] | None = None, **settings: Any
) -> set[int]:
    """The limits at which agents of these kinds, with this set on them, are stopped.

    What is in force is what is shown by `GET /agents`, and told with the answer.
    """
    agents = {kind: agent(kind, **own)[0] for kind in kinds}
    table = settings.pop("table", {})
    tables = {kind: AgentSettings(**table) for kind in kinds}
    limits = set()
    async with served(agents, agents=tables, **settings) as service:
        listed = (await service.client.get("/agents")).json()["agents"]
        shown = {view["name"]: view["iteration_limit"] for view in listed}
        for kind in kinds:
            result = (await service.ask(agent=kind, **(body or {}))).json()
            assert result["outcome"] == "iteration_limit", kind
            assert result["iterations"] == result["iteration_limit"], kind
            assert body or shown[kind] == result["iterations"], kind
            limits.add(result["iterations"])
    return limits


async def test_default_limit_is_ten() -> None:
    """Without any setting the limit is ten, whatever the library's own default is."""
    assert await reached(EVERY, {}) == {10}


async def test_setting_of_the_service_is_the_limit() -> None:
    """The service's setting is the limit of an agent without one."""
    assert await reached(EVERY, {}, max_iterations=5) == {5}


async def test_library_default_stops_nothing() -> None:
    """The library's own default, which nobody set, stops nothing."""
    assert await reached(EXECUTORS, {}, max_iterations=17) == {17}


async def test_setting_of_the_agent_beats_that_of_the_service() -> None:
    """An agent's own table beats the service's setting."""
    assert await reached(EVERY, {}, max_iterations=5, table=TABLE) == {4}


async def test_limit_on_the_agent_beats_both_settings() -> None:
    """A limit that was set on the agent itself beats both settings."""
    own = {"max_iterations": 3}
    assert await reached(WITH_OWN, own, max_iterations=5, table=TABLE) == {3}


async def test_library_default_set_by_hand_counts() -> None:
    """The library's own default counts if somebody set it."""
    own = {"max_iterations": 15}
    assert await reached(EXECUTORS, own, max_iterations=5, table=TABLE) == {15}


async def test_executor_without_a_limit_gets_the_setting() -> None:
    """An executor without any limit of its own gets the setting."""
    assert await reached(EXECUTORS, {"max_iterations": None}, table=TABLE) == {4}


async def test_request_beats_every_other_limit() -> None:
    """A caller's own limit beats every other."""
    body = {"max_iterations": 2}
    assert await reached(WITH_OWN, {"max_iterations": 3}, body, table=TABLE) == {2}
    assert await reached(EVERY, {}, body, table=TABLE) == {2}


async def test_request_above_the_limit_is_refused() -> None:
    """A caller may ask for one iteration up to the agent's limit, and reads the maximum."""
    made, _ = agent("agent_executor", max_iterations=3)
    async with served({"a": made}, max_iterations=5) as service:
        responses = {n: await service.ask(max_iterations=n) for n in (-1, 0, 1, 3, 4)}
    statuses = {n: response.status_code for n, response in responses.items()}
    assert statuses == {-1: 422, 0: 422, 1: 200, 3: 200, 4: 422}
    [error] = responses[4].json()["errors"]
    assert error["field"] == "max_iterations"
    assert "3" in error["message"]


@pytest.mark.parametrize("kind", ["agent_executor", "react"])
async def test_model_answers_at_an_executors_own_limit(kind: str) -> None:
    """At an executor's own limit the model still writes the answer, as for any other."""
    model = loops.asks_times(kind, 2)
    made = loops.build(kind, model, fakes.ToolDesk().tools(), max_iterations=2)
    async with served({"a": made}) as service:
        body = (await service.ask()).json()
    assert (body["outcome"], body["answer"]) == ("iteration_limit", loops.ANSWER)
    assert len(model.asked) == 3


@pytest.mark.parametrize("seconds", [0.0, 0.001])
@pytest.mark.parametrize("kind", ["agent_executor", "react"])
async def test_max_execution_time_never_answers(kind: str, seconds: float) -> None:
    """The `max_execution_time` of an executor never answers."""
    model = loops.asks_times(kind, 2)
    model.delay_s = 0.02
    made = loops.build(kind, model, fakes.ToolDesk().tools(), max_execution_time=seconds)
    async with served({"a": made}) as service:
        body = (await service.ask()).json()
    assert (body["outcome"], body["answer"]) == ("completed", loops.ANSWER)
    assert body["iterations"] == 2


FORCE, GENERATE = EarlyStopping.FORCE, EarlyStopping.GENERATE


# Set on the agent, set in its table, and what counts beside the service's own `generate`.
STOPPING: list[tuple[str | None, EarlyStopping | None, EarlyStopping]] = [
    (None, None, GENERATE),
    (None, FORCE, FORCE),
    ("generate", FORCE, GENERATE),
    ("force", GENERATE, FORCE),
]


@pytest.mark.parametrize("service_wide", [GENERATE, FORCE])
@pytest.mark.parametrize("kind", [*loops.ALL, "built"])
async def test_early_stopping_has_the_same_order(kind: str, service_wide: EarlyStopping) -> None:
    """Early stopping is decided in the same order as the limit."""
    option = "early_stopping" if kind == "built" else "early_stopping_method"
    has_own = kind not in ("create_agent", "langgraph")
    cases = {f"a{n}": case for n, case in enumerate(STOPPING) if has_own or case[0] is None}
    made = {
        name: agent(kind, **({option: own} if own else {})) for name, (own, _, _) in cases.items()
    }
    tables = {name: AgentSettings(early_stopping=table) for name, (_, table, _) in cases.items()}
    agents = {name: built for name, (built, _) in made.items()}
    async with served(
        agents, max_iterations=1, agents=tables, early_stopping=service_wide
    ) as service:
        listed = (await service.client.get("/agents")).json()["agents"]
        shown = {view["name"]: view["early_stopping"] for view in listed}
        for name, (own, table, in_force) in cases.items():
            expected = in_force if own or table else service_wide
            body = (await service.ask(agent=name)).json()
            assert (body["outcome"], body["answer"]) == ("iteration_limit", fixed_sentence(1))
            assert len(made[name][1].asked) == (2 if expected is GENERATE else 1)
            assert shown[name] == expected


def test_limits_from_variables_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables set the service's limit, the file an agent's."""
    file = tmp_path / "watchkeeper.toml"
    file.write_text(
        'max_iterations = 9\n[agents.a]\nmax_iterations = 4\nearly_stopping = "force"\n'
    )
    monkeypatch.setenv("WATCHKEEPER_MAX_ITERATIONS", "7")
    settings = configuration.read(file)
    limits = [settings.served(name).iteration_limit for name in ("a", "b")]
    stopping = [settings.served(name).early_stopping for name in ("a", "b")]
    assert (limits, stopping) == ([4, 7], [FORCE, GENERATE])


async def test_agents_keep_their_own_limits() -> None:
    """Agents side by side keep to their own limits."""
    first, _ = agent("agent_executor", max_iterations=2)
    second, _ = agent("create_agent")
    async with served({"first": first, "second": second}, max_iterations=3) as service:
        body = [(await service.ask(agent=name)).json() for name in ("first", "second")]
    assert [answer["iterations"] for answer in body] == [2, 3]
