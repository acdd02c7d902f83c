"""Agents of our builder ask again, through the real client, and never for longer than they may."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.agents import retry
from app.agents.builder import build_agent
from app.agents.openai import chat_openai
from app.agents.retry import may_help
from app.runs.events import ModelCallRetried, ModelCallStarted
from tests import fakes, loops
from tests.agents.test_model_faults import ASKS, EITHER_WAY, SAYS, STREAMED
from tests.service import Served, served
from tests.upstreams import llmock, set_scenario

PASSING = {name: b for name, b in EITHER_WAY.items() if name != "401" and "Retry" not in name}
PASSING["503"] = [{"type": "fail", "status": 503}]
ANSWER = "it is on its way to you"
# Long enough for a whole answer on a busy machine, shorter than what a stall takes.
TIMEOUT = (2.0, 0.6, 2.0, 2.0)


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with llmock() as url:
        yield url


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly any time between attempts: where waits are not what is looked at."""
    monkeypatch.setattr(retry, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(retry, "_LONGEST_WAIT_S", 0.01)


@asynccontextmanager
async def serving(
    url: str, streaming: bool = True, attempts: int = 3, **options: Any
) -> AsyncIterator[tuple[Served, fakes.ToolDesk]]:
    """An agent of our builder over the model server, and its tools' receipts."""
    desk = fakes.ToolDesk()
    chat = chat_openai(
        "gpt-4.1-mini",
        base_url=url,
        api_key="not-a-secret",
        streaming=streaming,
        **{"timeout": TIMEOUT, **options},
    )
    async with served({"a": build_agent(chat, desk.tools(), attempts=attempts)}) as service:
        yield service, desk


@pytest.mark.parametrize("streaming", [True, False])
async def test_recovered(streaming: bool, upstream: str, quick: None) -> None:
    """A fault that passes costs an attempt: the tool runs once, the answer is whole."""
    wrong = {}
    async with serving(upstream, streaming) as (service, desk):
        for name, behaviors in {**PASSING, **(STREAMED if streaming else {})}.items():
            service.facts.clear()
            desk.started.clear()
            answer = {"type": "reply", "text": ANSWER, "times": None}
            await set_scenario(upstream, *behaviors, ASKS, answer)
            told = (await service.ask()).json()
            asked = [(f.iteration, f.attempt) for f in service.facts_of(ModelCallStarted)]
            retracted = [fact.iteration for fact in service.facts_of(ModelCallRetried)]
            seen = (told.get("answer"), desk.started, asked, retracted)
            if seen != (ANSWER, ["look"], [(1, 1), (1, 2), (2, 1)], [1]):
                wrong[name] = seen
    assert wrong == {}


@pytest.mark.parametrize("streaming", [True, False])
async def test_given_up(streaming: bool, upstream: str, quick: None) -> None:
    """A fault that stays is model_failed after the attempts, and no tool ran."""
    wrong = {}
    async with serving(upstream, streaming, attempts=2) as (service, desk):
        for name, behaviors in {**PASSING, **(STREAMED if streaming else {})}.items():
            service.facts.clear()
            await set_scenario(upstream, *({**b, "times": None} for b in behaviors))
            response = await service.ask()
            told = response.json()
            seen = (response.status_code, told.get("code"), told.get("retryable"), desk.started)
            calls = len(service.facts_of(ModelCallStarted))
            if (*seen, calls) != (500, "model_failed", True, [], 2):
                wrong[name] = (*seen, calls)
    assert wrong == {}


async def test_useless_retries(upstream: str) -> None:
    """A call that can only fail again is made once."""
    async with serving(upstream) as (service, _):
        for status in (400, 401, 403, 404):
            service.facts.clear()
            await set_scenario(upstream, {"type": "fail", "status": status, "times": None})
            response = await service.ask()
            assert (response.status_code, response.json()["code"]) == (500, "model_failed")
            assert len(service.facts_of(ModelCallStarted)) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_beyond_the_run(status: int, upstream: str) -> None:
    """A wait that is longer than what the run has left is given up at once."""
    fails = {"type": "fail", "status": status, "retry_after": 60, "times": None}
    async with serving(upstream) as (service, _):
        await set_scenario(upstream, fails)
        began = time.monotonic()
        response = await service.ask(timeout=30)
        assert time.monotonic() - began < 5
        assert (response.status_code, response.json()["code"]) == (500, "model_failed")
        assert len(service.facts_of(ModelCallStarted)) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after(status: int, upstream: str) -> None:
    """A wait that fits is waited for in full, and belongs to the model's time."""
    async with serving(upstream) as (service, _):
        await set_scenario(upstream, {"type": "fail", "status": status, "retry_after": 1}, SAYS)
        told = (await service.ask(timeout=5.0)).json()
    assert told["outcome"] == "completed"
    assert 1.0 <= told["duration_s"] < 4.0
    assert told["timings"]["llm_s"] >= 1.0


async def test_retries_end_with_the_run(upstream: str) -> None:
    """However many attempts there are, the run ends by its deadline, as the model's failure."""
    async with serving(upstream, attempts=1_000) as (service, _):
        await set_scenario(upstream, {"type": "fail", "status": 500, "times": None})
        began = time.monotonic()
        response = await service.ask(timeout=1.0)
        assert time.monotonic() - began < 5
    told = response.json()
    assert (response.status_code, told["code"]) in ((500, "model_failed"), (504, "timeout"))
    assert told["phase"] == "llm" or told["code"] == "model_failed"


@pytest.mark.parametrize("stopping", ["generate", "force"])
async def test_retries_within_the_ceiling(stopping: str, quick: None) -> None:
    """Retries count towards the ceiling of model calls, those of the last answer included."""
    failing = fakes.ScriptedModel(script=loops.says(""), error=TimeoutError())
    agent = build_agent(failing, [], attempts=30, max_iterations=1)
    async with served({"a": agent}, early_stopping=stopping) as service:
        told = (await service.ask()).json()
    assert told["outcome"] == ("iteration_limit" if stopping == "force" else "failed")
    assert len(failing.asked) <= 4 * (1 + 1)


async def test_retries_are_no_iterations(upstream: str, quick: None) -> None:
    """Attempts count neither as iterations nor against the iteration limit."""
    fault = {"type": "tool_fault", "kind": "malformed_arguments"}
    async with serving(upstream) as (service, desk):
        await set_scenario(upstream, ASKS, fault, ASKS, ASKS, {**SAYS, "times": None})
        told = (await service.ask(max_iterations=3)).json()
    assert (told["outcome"], told["iterations"], told["tool_calls"]) == ("completed", 2, 2)
    assert desk.started == ["look", "look"]


def test_what_may_help() -> None:
    """A mistake of ours or of the user's is never worth another model call."""
    assert not any(map(may_help, (ValueError("x"), KeyError("x"), TypeError("x"))))
    assert may_help(TimeoutError())
