"""The result of a run is plain before the run ends, and its failure says what may be retried."""

from typing import Any

import pytest

from app.runs.errors import (
    AgentFailed,
    AnswerFiltered,
    DeadlineExceeded,
    ModelFailed,
    RunError,
    StoreUnavailable,
)
from app.runs.model import AgentAnswer, Limit, Mode, Outcome, RunRequest
from app.runs.ports import AgentCall
from app.runs.rendering import TooMuch
from tests.runs import scripted
from tests.runs.scripted import Desk, ScriptedAgent
from tests.runs.test_plain import Raises

pytestmark = pytest.mark.virtual_time


def answers(output: Any) -> scripted.Script:
    """A script with an output of its own."""

    async def script(_: AgentCall) -> AgentAnswer:
        return AgentAnswer("done", output=output)

    return script


@pytest.mark.parametrize(
    ("output", "detail", "cause"),
    [
        (Raises(ZeroDivisionError("secret")), "The agent failed.", ZeroDivisionError),
        (Raises(SystemExit(3)), "The agent failed.", SystemExit),
        ("x" * 50_000_000, "The agent's answer is larger or deeper than the service passes on.",
         TooMuch),
    ],
    ids=["raises", "exits", "large"],
)  # fmt: skip
async def test_output_that_cannot_be_rendered_fails_the_run(
    output: Any, detail: str, cause: type[BaseException]
) -> None:
    """The run fails once; the fact about it names the exception."""
    desk = Desk()
    ended = await desk.ask(answers(output))
    assert (ended.outcome, ended.answer) == (Outcome.FAILED, None)
    assert ended.error is not None
    assert (ended.error.code, ended.error.detail) == ("agent_failed", detail)
    [final] = desk.finals()
    assert (final.outcome, final.code) == (Outcome.FAILED, "agent_failed")
    assert isinstance(final.error, cause)
    assert desk.idle()


async def test_rendering_error_wrapped_by_an_agent_is_recognised() -> None:
    """A rendering error that an agent wraps in a failure of its own is still recognised."""

    async def script(_: AgentCall) -> AgentAnswer:
        try:
            return AgentAnswer("x" * 50_000_000)
        except ValueError as raised:
            raise AgentFailed from raised

    ended = await Desk().ask(script)
    assert ended.error is not None
    assert ended.error.detail.startswith("The agent's answer is larger")


async def test_end_and_final_fact_have_limit_and_refusal() -> None:
    """The end and the final fact have the limit and the refusal of the answer."""
    desk = Desk()

    async def script(_: AgentCall) -> AgentAnswer:
        return AgentAnswer("no", limit=Limit.MODEL_CALLS, refused=True)

    ended = await desk.ask(script)
    [final] = desk.finals()
    for source in (ended, final):
        assert (source.outcome, source.limit, source.refused) == (
            Outcome.ITERATION_LIMIT, Limit.MODEL_CALLS, True,
        )  # fmt: skip


def acts_then(error: BaseException, *, own: bool = True) -> scripted.Script:
    """A script whose tool has begun when it fails."""

    async def script(call: AgentCall) -> str:
        scripted.tool_starts(call) if own else None
        raise error

    return script


RETRYABLE = [
    (ModelFailed, True, None, False), (ModelFailed, True, "key", True),
    (ModelFailed, False, None, True), (StoreUnavailable, True, None, False),
    (AnswerFiltered, True, "key", False), (AgentFailed, True, "key", False),
    (DeadlineExceeded, True, None, True),
]  # fmt: skip


@pytest.mark.parametrize(("error", "acted", "operation", "retryable"), RETRYABLE)
async def test_failure_after_a_tool_started_is_retryable_with_a_key_only(
    error: type[RunError], acted: bool, operation: str | None, retryable: bool
) -> None:
    """The failure is retryable only with a key, by which tools recognise a repeat."""
    desk = Desk()
    request = RunRequest("q", 30.0, operation=operation)
    agent = ScriptedAgent(acts_then(error(), own=acted))
    run = desk.runner.start(agent, request, Mode.SYNC)
    ended = await run.ended
    assert ended.error is not None
    assert ended.error.retryable is retryable
    assert agent.calls[0].operation == operation
    assert error.retryable is error().retryable  # of the class nothing has changed
