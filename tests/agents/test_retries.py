"""Agents of our builder retry, through the real client, within the time of the run."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from app.agents.models import retry
from app.agents.models.openai import StrictChatOpenAI, chat_openai
from app.agents.models.retry import is_retryable
from app.runs.events import Event, ModelCallRetried, ModelCallStarted
from tests import fakes, loops
from tests.agents.test_model_faults import ASKS, EITHER_WAY, READ_S, SAYS, STREAMED
from tests.service import Served, served
from tests.upstreams import llmock, set_scenario
from watchkeeper import build_agent

pytestmark = pytest.mark.waits

PASSING = {name: b for name, b in EITHER_WAY.items() if name != "401" and "Retry" not in name}
PASSING["503"] = [{"type": "fail", "status": 503}]
ANSWER = "it is on its way to you"
PATIENT = (30.0, 30.0, 30.0, 30.0)
# Shorter than what a whole answer may take on a busy machine: only for calls that shall fail.
HASTY = (30.0, READ_S, 30.0, 30.0)
# Where the server leaves its client waiting.
WAITING = ("stall", "slow", "late")


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with llmock() as url:
        yield url


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly any time between attempts: where waits are not what is looked at."""
    monkeypatch.setattr(retry, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(retry, "_LONGEST_WAIT_S", 0.01)


class Serving(NamedTuple):
    """An agent of our builder over the model server, and its tools' receipts."""

    service: Served
    desk: fakes.ToolDesk
    chat: StrictChatOpenAI

    def expect(self, fault: str) -> None:
        """Let the client wait hardly at all for a server that would keep it waiting."""
        hasty = any(word in fault for word in WAITING)
        self.chat.root_async_client.timeout = HASTY if hasty else PATIENT

    def be_patient_when_asked_again(self) -> None:
        """The first attempt shall fail of impatience, and none after it."""
        runner = self.service.service.runner
        emit_to_sinks = runner.emit

        def emit(fact: Event) -> None:
            if isinstance(fact, ModelCallRetried):
                self.chat.root_async_client.timeout = PATIENT
            emit_to_sinks(fact)

        runner.emit = emit


@asynccontextmanager
async def serving(url: str, streaming: bool = True, attempts: int = 3) -> AsyncIterator[Serving]:
    """Serve an agent of our builder, whose client is patient."""
    desk = fakes.ToolDesk()
    chat = chat_openai(
        "gpt-4.1-mini",
        base_url=url,
        api_key="not-a-secret",
        streaming=streaming,
        timeout=PATIENT,
    )
    async with served({"a": build_agent(chat, desk.tools(), attempts=attempts)}) as service:
        yield Serving(service, desk, chat)


@pytest.mark.parametrize("streaming", [True, False])
async def test_temporary_fault_costs_an_attempt(
    streaming: bool, upstream: str, quick: None
) -> None:
    """A temporary fault costs an attempt: the tool runs once, the answer is whole."""
    wrong = {}
    async with serving(upstream, streaming) as serves:
        service, desk = serves.service, serves.desk
        serves.be_patient_when_asked_again()
        for name, behaviors in {**PASSING, **(STREAMED if streaming else {})}.items():
            serves.expect(name)
            service.facts.clear()
            desk.started.clear()
            answer = {"type": "reply", "text": ANSWER, "times": None}
            await set_scenario(upstream, *behaviors, ASKS, answer)
            body = (await service.ask()).json()
            attempts = [(f.iteration, f.attempt) for f in service.facts_of(ModelCallStarted)]
            retracted = [fact.iteration for fact in service.facts_of(ModelCallRetried)]
            seen = (body.get("answer"), desk.started, attempts, retracted)
            if seen != (ANSWER, ["look"], [(1, 1), (1, 2), (2, 1)], [1]):
                wrong[name] = seen
    assert wrong == {}


@pytest.mark.parametrize("streaming", [True, False])
async def test_permanent_fault_is_model_failed(streaming: bool, upstream: str, quick: None) -> None:
    """A permanent fault is model_failed after the attempts, and no tool runs."""
    wrong = {}
    async with serving(upstream, streaming, attempts=2) as serves:
        service, desk = serves.service, serves.desk
        for name, behaviors in {**PASSING, **(STREAMED if streaming else {})}.items():
            serves.expect(name)
            service.facts.clear()
            await set_scenario(upstream, *({**b, "times": None} for b in behaviors))
            response = await service.ask()
            body = response.json()
            seen = (response.status_code, body.get("code"), body.get("retryable"), desk.started)
            calls = len(service.facts_of(ModelCallStarted))
            if (*seen, calls) != (500, "model_failed", True, [], 2):
                wrong[name] = (*seen, calls)
    assert wrong == {}


async def test_permanent_error_is_not_retried(upstream: str) -> None:
    """A call that can only fail again is made once."""
    async with serving(upstream) as (service, _, _):
        for status in (400, 401, 403, 404):
            service.facts.clear()
            await set_scenario(upstream, {"type": "fail", "status": status, "times": None})
            response = await service.ask()
            assert (response.status_code, response.json()["code"]) == (500, "model_failed")
            assert len(service.facts_of(ModelCallStarted)) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_beyond_the_deadline_gives_up(status: int, upstream: str) -> None:
    """A wait that is longer than the remaining time gives up at once."""
    fails = {"type": "fail", "status": status, "retry_after": 60, "times": None}
    async with serving(upstream) as (service, _, _):
        await set_scenario(upstream, fails)
        began = time.monotonic()
        response = await service.ask(timeout=30)
        assert time.monotonic() - began < 20
        assert (response.status_code, response.json()["code"]) == (500, "model_failed")
        assert len(service.facts_of(ModelCallStarted)) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_waited_for(status: int, upstream: str) -> None:
    """A wait that fits is waited in full, and counts as the model's time."""
    async with serving(upstream) as (service, _, _):
        await set_scenario(upstream, {"type": "fail", "status": status, "retry_after": 1}, SAYS)
        body = (await service.ask(timeout=30.0)).json()
    assert body["outcome"] == "completed"
    assert 1.0 <= body["duration_s"] < 20
    assert body["timings"]["llm_s"] >= 1.0


async def test_retries_end_with_the_run(upstream: str) -> None:
    """However many attempts there are, the run ends by its deadline, as the model's failure."""
    async with serving(upstream, attempts=1_000) as (service, _, _):
        await set_scenario(upstream, {"type": "fail", "status": 500, "times": None})
        began = time.monotonic()
        response = await service.ask(timeout=3.0)
        assert time.monotonic() - began < 20
    body = response.json()
    assert (response.status_code, body["code"]) in ((500, "model_failed"), (504, "timeout"))
    assert body["phase"] == "llm" or body["code"] == "model_failed"


@pytest.mark.parametrize("stopping", ["generate", "force"])
async def test_retries_within_the_ceiling(stopping: str, quick: None) -> None:
    """Retries count towards the ceiling of model calls, those of the last answer included."""
    failing = fakes.ScriptedModel(script=loops.replies(""), error=TimeoutError())
    agent = build_agent(failing, [], attempts=30, max_iterations=1)
    async with served({"a": agent}, early_stopping=stopping) as service:
        body = (await service.ask()).json()
    assert body["outcome"] == ("iteration_limit" if stopping == "force" else "failed")
    assert len(failing.asked) <= 4 * (1 + 1)


async def test_retries_are_no_iterations(upstream: str, quick: None) -> None:
    """Attempts count neither as iterations nor against the iteration limit."""
    fault = {"type": "tool_fault", "kind": "malformed_arguments"}
    async with serving(upstream) as (service, desk, _):
        await set_scenario(upstream, ASKS, fault, ASKS, ASKS, {**SAYS, "times": None})
        body = (await service.ask(max_iterations=3)).json()
    assert (body["outcome"], body["iterations"], body["tool_calls"]) == ("completed", 2, 2)
    assert desk.started == ["look", "look"]


def test_what_may_help() -> None:
    """A mistake of ours or of the user's is never worth another model call."""
    assert not any(map(is_retryable, (ValueError("x"), KeyError("x"), TypeError("x"))))
    assert is_retryable(TimeoutError())
