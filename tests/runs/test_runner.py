"""Every run ends once, in time, and releases what it held."""

import asyncio
from contextlib import suppress

import pytest

from app.runs.errors import (
    AgentFailed,
    Interrupted,
    ModelFailed,
)
from app.runs.events import (
    RunFinished,
    RunStarted,
)
from app.runs.model import AgentAnswer, Limit, Mode, Outcome, RunRequest, State
from app.runs.ports import AgentCall
from tests.runs.scripted import Desk, ScriptedAgent, after, at_once, raises

pytestmark = pytest.mark.virtual_time


async def test_answered_run_is_completed() -> None:
    """A run that answers is completed, with its facts in order."""
    desk = Desk()
    run = desk.start(at_once, "hello")
    ended = await run.ended
    assert ended.answer == AgentAnswer("answer to hello")
    assert (ended.outcome, ended.error, ended.phase) == (Outcome.COMPLETED, None, None)
    assert [type(fact) for fact in desk.facts] == [RunStarted, RunFinished]
    assert run.state is State.FINISHED
    assert desk.idle()


async def test_agent_gets_the_request() -> None:
    """The agent gets the question, the caller's limit and the run's own id."""
    desk = Desk()
    agent = ScriptedAgent(at_once)
    request = RunRequest("q?", 5.0, max_iterations=3, thread_id="t")
    run = desk.runner.start(agent, request, Mode.SYNC)
    await run.ended
    (call,) = agent.calls
    assert (call.run_id, call.question, call.thread_id) == (run.id, "q?", "t")
    assert (call.iteration_limit, run.iteration_limit) == (3, 3)


async def test_reached_limit_is_an_outcome() -> None:
    """An answer written at the iteration limit does not complete the run."""

    async def script(_: AgentCall) -> AgentAnswer:
        return AgentAnswer("as far as I got", limit=Limit.ITERATIONS)

    ended = await Desk().ask(script)
    assert ended.outcome is Outcome.ITERATION_LIMIT
    assert ended.error is None


class Strange(BaseException):
    """An exception of code that does not know Exception."""


@pytest.mark.parametrize(
    ("error", "code", "outcome"),
    [
        (ValueError("x"), "agent_failed", Outcome.FAILED),
        (TimeoutError("theirs"), "agent_failed", Outcome.FAILED),
        (asyncio.CancelledError(), "agent_failed", Outcome.FAILED),
        (Strange(), "agent_failed", Outcome.FAILED),
        (ExceptionGroup("g", [ValueError()]), "agent_failed", Outcome.FAILED),
        (AgentFailed(), "agent_failed", Outcome.FAILED),
        (ModelFailed(), "model_failed", Outcome.FAILED),
        (Interrupted(), "interrupted", Outcome.INTERRUPTED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
async def test_exception_of_an_agent_ends_the_run_once(
    error: BaseException, code: str, outcome: Outcome
) -> None:
    """Whatever an agent raises, at its first step or later, the run ends once with a code."""
    desk = Desk(slots=1)

    async def late(call: AgentCall) -> str:
        await after(0.001)(call)
        raise error

    for script in (raises(error), late):
        run = desk.start(script)
        ended = await run.ended
        assert ended.error is not None
        assert (ended.error.code, ended.outcome) == (code, outcome)
        (final,) = desk.finals(run)
        assert (final.code, final.outcome) == (code, outcome)
    assert desk.idle()


def test_sys_exit_in_an_agent_ends_its_run_only() -> None:
    """An agent that calls sys.exit ends its own run, not the service."""

    async def serve() -> tuple[str | None, Outcome]:
        desk = Desk()
        run = desk.start(raises(SystemExit(2)))
        await asyncio.wait({run.ended}, timeout=30)
        ended = run.ended.result()
        return ended.error.code if ended.error else None, (await desk.ask(at_once)).outcome

    result: tuple[str | None, Outcome] | None = None
    # An exit that goes through the loop ends it.
    with suppress(SystemExit), asyncio.Runner() as loop:
        result = loop.run(serve())
    assert result == ("agent_failed", Outcome.COMPLETED)


async def test_final_fact_has_the_error() -> None:
    """The final fact carries the error, so that the log can name it."""
    error = ValueError("x")
    desk = Desk()
    await desk.ask(raises(error))
    assert desk.finals()[0].error is error
