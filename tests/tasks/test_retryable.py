"""When a failure is retryable: after a tool started, only with a key, which identifies repeats."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import tool

from tests import fakes
from tests.service import Served, served
from tests.streams.reading import of, parse
from tests.tasks.background import ended, url_in
from watchkeeper import tool_call_key

pytestmark = pytest.mark.asyncio(loop_scope="module")
MODES = ("", "/stream", "/async")
modes = pytest.mark.parametrize("mode", MODES)
kinds = pytest.mark.parametrize("kind", fakes.KINDS)


class CashRegister:
    """What was paid, by the idempotency key of each call; its model fails once it is to fail."""

    def __init__(self) -> None:
        self.paid: list[str] = []
        self.fails = True

    def agent(self, kind: str, *, pays: bool = True) -> Any:
        """An agent that pays, and whose model then fails; or that fails at once."""

        @tool
        async def pay(amount: int) -> str:
            """Pay so much."""
            self.paid.append(tool_call_key() or "")
            return "paid"

        def script(messages: Sequence[BaseMessage]) -> AIMessage:
            if pays and not fakes.results_since_question(messages):
                calls = [fakes.asks("pay", {"amount": n}, number=id(messages) + n) for n in (1, 2)]
                return AIMessage("", tool_calls=[call.tool_calls[0] for call in calls])
            if self.fails:
                raise ConnectionError
            return AIMessage("done")

        return fakes.build(kind, fakes.ScriptedModel(script=script), [pay])


@pytest.fixture(scope="module")
def cash_register() -> CashRegister:
    return CashRegister()


@pytest.fixture(autouse=True)
def at_first(cash_register: CashRegister) -> None:
    """The model fails, and nothing is paid."""
    cash_register.paid.clear()
    cash_register.fails = True


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk(
    cash_register: CashRegister, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    agents = {f"pays-{kind}": cash_register.agent(kind) for kind in fakes.KINDS}
    agents |= {f"fails-{kind}": cash_register.agent(kind, pays=False) for kind in fakes.KINDS}
    async with served(agents, store_url=url_in(tmp_path_factory.mktemp("repeats"))) as service:
        yield service


async def ask(desk: Served, agent: str, mode: str, key: str | None = None) -> dict[str, Any]:
    """The finished run or the problem, whichever way it was asked for."""
    headers = {} if key is None else {"Idempotency-Key": key}
    path = f"/agents/{agent}{mode}"
    response = await desk.client.post(path, json={"question": "q"}, headers=headers)
    if mode == "/async":
        return await of_task(desk, response.json()["task_id"])
    events: dict[str, Any] = of(parse(response.content), "end")[0] if mode else response.json()
    return events


async def of_task(desk: Served, task_id: str) -> dict[str, Any]:
    """The finished run or the problem of a background run."""
    task = await ended(desk, task_id)
    result: dict[str, Any] = task["result"] or task["error"]
    return result


@kinds
@modes
async def test_failure_after_a_tool_started_is_retryable_with_a_key_only(
    desk: Served, kind: str, mode: str, cash_register: CashRegister
) -> None:
    """Without a key a repeat could pay twice, so the failure is not retryable; with a key it is."""
    for key in (None, f"begun-{kind}-{mode}"):
        error = await ask(desk, f"pays-{kind}", mode, key)
        assert (error["code"], error["tool_calls"]) == ("model_failed", 2)
        assert error["retryable"] is (key is not None)


@kinds
@modes
async def test_failure_before_any_tool_is_retryable(desk: Served, kind: str, mode: str) -> None:
    """A failure before any tool call is retryable, with a key or without."""
    for key in (None, f"before-{kind}-{mode}"):
        error = await ask(desk, f"fails-{kind}", mode, key)
        assert (error["code"], error["retryable"]) == ("model_failed", True)


@kinds
@pytest.mark.parametrize("mode", ["", "/stream"])
async def test_repeat_with_the_key_starts_a_new_run(
    desk: Served, kind: str, mode: str, cash_register: CashRegister
) -> None:
    """A retryable failure is not replayed: the run starts anew, and tools can detect the repeat."""
    key = f"repeat-{kind}-{mode}"
    first = await ask(desk, f"pays-{kind}", mode, key)
    cash_register.fails = False
    second = await ask(desk, f"pays-{kind}", mode, key)
    assert (first["outcome"], second["outcome"]) == ("failed", "completed")
    assert first["run_id"] != second["run_id"]
    assert cash_register.paid[:2] == cash_register.paid[2:]
    assert len(set(cash_register.paid)) == 2
    third = await ask(desk, f"pays-{kind}", mode, key)
    assert (third, len(cash_register.paid)) == (second, 4)
    await ask(desk, f"pays-{kind}", mode, f"{key}-other")
    assert not set(cash_register.paid[:4]) & set(cash_register.paid[4:])


@pytest.mark.parametrize("key", [None, "retried"])
async def test_retry_with_a_key_is_the_same_operation(
    desk: Served, key: str | None, cash_register: CashRegister
) -> None:
    """A retry of a failed run with a key is the same operation; without a key it is another."""
    agent = "pays-agent_executor"  # whose model's calls have no ids
    headers = {} if key is None else {"Idempotency-Key": key}
    path = f"/agents/{agent}/async"
    first = await desk.client.post(path, json={"question": "q"}, headers=headers)
    assert (await of_task(desk, first.json()["task_id"]))["retryable"] is (key is not None)
    cash_register.fails = False
    retry = f"/agent/async/{first.json()['task_id']}/retry"
    second = await desk.client.post(retry)
    assert (await of_task(desk, second.json()["task_id"]))["outcome"] == "completed"
    assert (cash_register.paid[:2] == cash_register.paid[2:]) is (key is not None)
    again = await desk.client.post(f"/agent/async/{second.json()['task_id']}/retry")
    assert (await of_task(desk, again.json()["task_id"]))["outcome"] == "completed"
    assert not set(cash_register.paid[:4]) & set(
        cash_register.paid[4:]
    )  # what has its answer is wanted once more


async def test_timeout_is_always_retryable(desk: Served, cash_register: CashRegister) -> None:
    """A timeout is retryable, as the contract says, whatever had started."""
    nap = fakes.ToolDesk(60)
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("nap"))
    async with served({"nap": fakes.build("create_agent", model, nap.tools())}) as service:
        asking = asyncio.ensure_future(service.ask(agent="nap"))
        await service.times_out("nap", "tool:nap")
        body = (await asking).json()
    assert (body["code"], body["tool_calls"], body["retryable"]) == ("timeout", 1, True)
