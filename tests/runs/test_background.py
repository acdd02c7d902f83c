"""One attempt of a stored run: its log, its fence, and what it resumes from."""

import asyncio
import gc
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from app.runs.background import Background
from app.runs.deadline import Current, current, remaining
from app.runs.errors import Cancelled, HandedOver, ModelFailed, NotStorable, StoreUnavailable
from app.runs.events import RunFinished, RunHandedOver, RunStarted, WorkAbandoned
from app.runs.live import Ended, Run
from app.runs.model import Outcome, RunRequest, Usage
from app.runs.ports import AgentCall
from app.runs.tasks import AttemptStart, Body, Result
from tests.runs import scripted, virtual_time
from tests.runs.scripted import Desk, ScriptedAgent
from tests.waiting import came_true

pytestmark = pytest.mark.virtual_time


class Store:
    """An attempt on a store: what it writes, by position; `refuse` has errors of the next writes.

    `refuses` says whether the store refuses the content of a row.
    """

    def __init__(self, timeout_s: float = 30.0, **others: Any) -> None:
        now = time.time()
        self.rows: dict[int, Mapping[str, Any]] = {}
        self.checks = 0
        self.bounds_s: list[float] = []
        self.refuse: list[Exception] = []
        self.refuses: Callable[[Mapping[str, Any]], bool] = lambda row: False
        self.slow_s = 0.0
        self.ended: list[Outcome] = []
        self.bodies: list[Body] = []
        self.writes = 0
        given: dict[str, Any] = {
            "task_id": "t",
            "agent": "scripted",
            "request": RunRequest("q", timeout_s),
            "number": 1,
            "resumed": False,
            "created_at": now,
            "started_at": now,
            "log": (),
            "claim_token": "c",
        }
        self.start = AttemptStart(**{**given, **others})

    async def write(self, offset: int, row: Mapping[str, Any]) -> None:
        self.writes += 1
        self._refuse()
        if self.refuses(row):
            raise NotStorable
        await asyncio.sleep(self.slow_s)
        self.rows.setdefault(offset, row)

    async def check(self) -> None:
        self.checks += 1
        self._refuse()

    def check_blocking(self, timeout_s: float) -> None:
        self.bounds_s.append(timeout_s)
        self._refuse()

    async def end(self, result: Result, offset: int, row: Mapping[str, Any] | None) -> None:
        if row is not None:
            await self.write(offset, row)
        self._refuse()
        self.ended.append(result.outcome)
        self.bodies.append(result.body)

    async def report_stop(self, body: Body, *, stuck: bool) -> None:
        self.bodies.append(body)

    def _refuse(self) -> None:
        if self.refuse:
            raise self.refuse.pop(0)

    @property
    def written(self) -> list[str]:
        """The names of all events, in order, of a log without a hole."""
        assert sorted(self.rows) == list(range(len(self.rows)))
        return [name for position in sorted(self.rows) for name, _ in self.rows[position]["events"]]


class OpenFence:
    """The fence of a process that owns its run."""

    claim_token = "c"

    async def confirm_owned(self) -> None:
        """It does."""

    def confirm_owned_in_thread(self) -> None:
        """It does."""


OPEN = OpenFence()
SILENT = StoreUnavailable()


@contextmanager
def remaining_s(seconds: float) -> Iterator[None]:
    """Code in the block has so much time until its deadline."""
    clock = virtual_time.clock()
    token = current.set(Current("t", clock.monotonic() + seconds, clock))
    try:
        yield
    finally:
        current.reset(token)


async def worked(desk: Desk, agent: ScriptedAgent, attempt: Store) -> Body:
    """Execute an attempt; the body that it stored."""

    def render(run: Run, ended: Ended) -> Body:
        retryable = {"retryable": ended.error.retryable} if ended.error else {}
        return {"outcome": ended.outcome, **retryable}

    background = Background(desk.runner, lambda: {"scripted": agent}, render)
    await background.execute(attempt)
    return attempt.bodies[-1]


async def test_every_event_is_stored_once() -> None:
    """Every event is in the log once, in order, although its writer is cancelled at the end."""
    desk, store = Desk(), Store()
    store.slow_s = 0.15  # the last row is on its way when the run ends

    async def talks(call: AgentCall) -> str:
        for number in range(1, 4):
            scripted.iteration(call, number)
            await scripted.after(0.08)(call)
        return "done"

    result = await worked(desk, ScriptedAgent(talks), store)
    assert result["outcome"] is Outcome.COMPLETED
    assert store.written == ["run", "iteration", "iteration", "iteration", "token"]


async def test_fence_checks_without_a_row_to_write() -> None:
    """A tool of a sub-agent, which emits no event, passes the fence as well."""
    desk, store = Desk(), Store()

    async def calls_twice(call: AgentCall) -> str:
        assert call.fence is not None
        await call.fence.confirm_owned()
        await call.fence.confirm_owned()
        return "done"

    await worked(desk, ScriptedAgent(calls_twice), store)
    assert store.checks == 1


@pytest.mark.parametrize("when", ["writing", "asking"])
async def test_lost_run_stops_at_the_fence(when: str) -> None:
    """A process that lost the run does nothing after the fence, and reports no outcome."""
    desk, store = Desk(), Store()
    done: list[str] = []

    async def acts(call: AgentCall) -> str:
        assert call.fence is not None
        if when == "asking":
            await call.fence.confirm_owned()
        store.refuse = [HandedOver()] * 3
        await call.fence.confirm_owned()
        done.append("acted")
        return "done"

    with pytest.raises(HandedOver):
        await worked(desk, ScriptedAgent(acts), store)
    assert done == []
    kinds = [type(fact) for fact in desk.facts]
    assert RunHandedOver in kinds
    assert RunFinished not in kinds


@pytest.mark.parametrize("raises", [True, False])
async def test_run_cancelled_elsewhere_is_cancelled(raises: bool) -> None:
    """The fence distinguishes a cancellation from a takeover, whichever part met it first."""
    desk, store = Desk(), Store()

    async def acts(call: AgentCall) -> str:
        assert call.fence is not None
        store.refuse = [Cancelled()] * 3
        if raises:
            raise HandedOver  # what keeps steps or conversations knows no more
        await call.fence.confirm_owned()
        return "done"

    with pytest.raises(Cancelled):
        await worked(desk, ScriptedAgent(acts), store)
    kinds = [type(fact) for fact in desk.facts]
    assert RunFinished in kinds
    assert RunHandedOver not in kinds
    assert store.ended == []


@pytest.mark.parametrize(
    ("refusal", "outcome"),
    [(None, "completed"), (Cancelled(), "cancelled"), (HandedOver(), None), (SILENT, None)],
)
async def test_sync_tool_on_the_loop_confirms_ownership(
    refusal: Exception | None, outcome: str | None
) -> None:
    """Sync code on the loop acts only if the store confirms, within seconds, that we own the run.

    A store that does not answer in that time leaves the run to the next attempt.
    """
    desk, store, acted = Desk(), Store(), list[str]()

    async def acts(call: AgentCall) -> str:
        assert call.fence is not None
        await call.fence.confirm_owned()
        store.refuse = [refusal] * 3 if refusal else []
        call.fence.confirm_owned_in_thread()
        acted.append("acted")
        return "done"

    working = asyncio.create_task(worked(desk, ScriptedAgent(acts), store))
    await asyncio.wait({working})
    assert acted == (["acted"] if refusal is None else [])
    assert [final.outcome for final in desk.finals()] == ([outcome] if outcome else [])
    assert isinstance(working.exception(), HandedOver) is (outcome is None)
    assert 0.0 < store.bounds_s[0] <= 5.0


async def test_silent_store_delays_sync_code_on_the_loop_to_the_deadline() -> None:
    """Sync code on the loop waits for the store until the deadline at most, which ends the run."""
    desk, store = Desk(), Store()

    async def acts(call: AgentCall) -> str:
        await asyncio.sleep(0.1)
        store.refuse = [StoreUnavailable()]
        assert call.fence is not None
        with remaining_s(0.0):
            call.fence.confirm_owned_in_thread()
        return "done"

    result = await worked(desk, ScriptedAgent(acts), store)
    assert (result["outcome"], store.bounds_s) == (Outcome.TIMEOUT, [0.0])


@pytest.mark.threads
@pytest.mark.waits
async def test_store_query_ends_with_the_waiting_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool on a thread waits for the store to the deadline, and its query ends with it."""
    desk, store, away = Desk(), Store(timeout_s=0.5), [True]

    async def write(offset: int, row: Mapping[str, Any]) -> None:
        if away:
            raise StoreUnavailable
        await Store.write(store, offset, row)

    async def on_a_thread(call: AgentCall) -> str:
        assert call.fence is not None
        await asyncio.to_thread(call.fence.confirm_owned_in_thread)
        return "done"

    monkeypatch.setattr(store, "write", write)
    working = asyncio.create_task(worked(desk, ScriptedAgent(on_a_thread), store))
    await asyncio.sleep(1.5)
    assert not [task for task in asyncio.all_tasks() if "passed" in repr(task.get_coro())]
    away.clear()
    assert (await working)["outcome"] is Outcome.TIMEOUT


@pytest.mark.threads
@pytest.mark.waits
async def test_each_attempt_reports_its_own_threads() -> None:
    """An attempt after one that left a thread behind reports no thread, and neither is confused."""
    desk, door = Desk(), threading.Event()
    asyncio.get_running_loop().set_default_executor(desk.threads)

    async def leaves_a_thread(call: AgentCall) -> str:
        await asyncio.to_thread(door.wait, 60)
        return "too late"

    first = desk.runner.execute(ScriptedAgent(leaves_a_thread), Store().start, OPEN)
    await came_true(lambda: desk.threads.busy == 1, "the tool works on its thread")
    desk.runner.stop(first, HandedOver())
    await first.ended
    assert [(left.threads, left.tasks) for left in desk.facts_of(WorkAbandoned)] == [(1, 0)]
    second = desk.runner.execute(ScriptedAgent(scripted.at_once), Store().start, OPEN)
    await second.ended
    assert (desk.runner.is_stuck(first), desk.runner.is_stuck(second)) == (True, False)
    assert len(desk.facts_of(WorkAbandoned)) == 1
    door.set()
    await desk.release(first)


async def executing(desk: Desk, attempt: Store, agent: ScriptedAgent) -> asyncio.Task[Body]:
    """Start an attempt; return its task once the agent was called."""
    working = asyncio.create_task(worked(desk, agent, attempt))
    await came_true(lambda: agent.calls, "the attempt began")
    return working


async def test_later_attempt_stops_the_one_before() -> None:
    """An attempt is stopped when a later one of its run begins in the same process."""
    desk, began = Desk(), scripted.loop_time()
    first = await executing(desk, Store(), ScriptedAgent(scripted.hangs))
    second = await worked(desk, ScriptedAgent(scripted.at_once), Store(number=2))
    assert second["outcome"] is Outcome.COMPLETED
    assert scripted.loop_time() - began < 5.0
    await asyncio.wait({first})
    assert isinstance(first.exception(), HandedOver)


async def test_earlier_attempt_leaves_the_later_one_alone() -> None:
    """An attempt that comes late does not stop a later one of its run."""
    desk, door = Desk(), asyncio.Event()
    later = Store(number=2)
    second = await executing(desk, later, ScriptedAgent(scripted.behind(door)))
    late = ScriptedAgent(scripted.at_once)
    with pytest.raises(HandedOver):
        await worked(desk, late, Store(number=1))
    door.set()
    assert ((await second)["outcome"], late.calls) == (Outcome.COMPLETED, [])


async def test_attempt_that_never_ends_delays_the_next_to_the_deadline() -> None:
    """If an earlier attempt in this process does not end, the next one ends at the deadline."""
    desk, began = Desk(), scripted.loop_time()
    former = desk.runner.execute(ScriptedAgent(scripted.hangs), Store().start, OPEN)
    former.stopping = HandedOver()  # it was stopped, and nothing ends it
    result = await worked(desk, ScriptedAgent(scripted.hangs), Store(2.0, number=2))
    assert result["outcome"] is Outcome.TIMEOUT
    assert scripted.loop_time() - began == pytest.approx(2.0, abs=0.5)
    assert desk.runner.in_flight == {}
    former.stopping = None
    desk.runner.stop(former, HandedOver())
    await desk.tasks_over()


async def test_unreachable_store_delays_a_run() -> None:
    """While the store is unreachable nothing is lost: the write is retried."""
    desk, store = Desk(), Store()
    store.refuse = [StoreUnavailable(), StoreUnavailable()]
    result = await worked(desk, ScriptedAgent(scripted.at_once), store)
    assert result["outcome"] is Outcome.COMPLETED
    assert store.ended == [Outcome.COMPLETED]
    assert store.written == ["run", "token"]


async def test_refused_row_fails_the_run_once() -> None:
    """A run whose row the store refuses fails once, and nothing is retried."""
    desk, store = Desk(), Store()
    store.refuses = lambda row: True

    async def acts(call: AgentCall) -> str:
        assert call.fence is not None
        await call.fence.confirm_owned()
        return "done"

    result = await worked(desk, ScriptedAgent(acts), store)
    [final] = desk.finals()
    assert (result["outcome"], final.outcome, final.code) == (
        Outcome.FAILED, Outcome.FAILED, "agent_failed",
    )  # fmt: skip
    assert (store.ended, store.writes) == ([Outcome.FAILED], 1)


async def test_refused_last_row_keeps_the_end() -> None:
    """The end of a run stands even if the rest of its log cannot be stored."""
    desk, store = Desk(), Store()
    store.refuses = lambda row: any(name == "token" for name, _ in row["events"])
    result = await worked(desk, ScriptedAgent(scripted.at_once), store)
    assert result["outcome"] is Outcome.COMPLETED
    assert store.ended == [Outcome.COMPLETED]
    assert [final.outcome for final in desk.finals()] == [Outcome.COMPLETED]


@pytest.mark.parametrize("resumes", [True, False])
async def test_failure_after_a_tool_of_an_earlier_attempt_is_final(resumes: bool) -> None:
    """A failure is not retryable if a tool started before the process changed."""
    desk = Desk()
    log = await cut(desk, Store())
    later = Store(log=log, number=2, resumed=True)
    agent = ScriptedAgent(scripted.raises(ModelFailed()), resumes=resumes)
    result = await worked(desk, agent, later)
    assert result == {"outcome": Outcome.FAILED, "retryable": False}


async def cut(desk: Desk, store: Store, cost_usd: float | None = None) -> list[Mapping[str, Any]]:
    """The log so far, after an attempt that called a tool, had a turn and was cut there."""

    async def dies(call: AgentCall) -> str:
        scripted.model_starts(call)
        await scripted.after(0.05)(call)
        scripted.model_ends(call, usage=Usage(10, 5), cost_usd=cost_usd)
        scripted.tool_starts(call)
        scripted.tool_ends(call)
        scripted.iteration(call, call.iterations + 1)
        assert call.fence is not None
        await call.fence.confirm_owned()
        store.refuse = [HandedOver()] * 3
        raise HandedOver

    with pytest.raises(HandedOver):
        await worked(desk, ScriptedAgent(dies, resumes=True), store)
    return [*store.start.log, *(store.rows[position] for position in sorted(store.rows))]


@pytest.mark.parametrize("resumes", [True, False])
@pytest.mark.parametrize(("costs", "cost_usd"), [((0.25, 0.5), 0.75), ((None, 0.5), None)])
async def test_next_attempt_goes_on_counting(
    costs: tuple[float | None, float], cost_usd: float | None, resumes: bool
) -> None:
    """Usage of earlier attempts counts; their turns and steps count once if an agent resumes."""
    desk, log = Desk(), list[Mapping[str, Any]]()
    for number, cost in enumerate(costs, start=1):
        store = Store(log=log, number=number, resumed=number > 1)
        log = await cut(desk, store, cost)
    store = Store(log=log, number=3, resumed=True)
    await worked(desk, ScriptedAgent(scripted.at_once, resumes=resumes), store)
    assert min(store.rows) == len(log)
    [final] = desk.finals()
    counts = (final.iterations, final.tool_calls, final.tools)
    assert counts == ((2, 2, {"look": 2}) if resumes else (0, 0, {}))
    assert (final.usage.input_tokens, final.cost_usd) == (20, cost_usd)
    assert final.timings.llm_s > 0.099


async def test_attempts_are_linked() -> None:
    """Each attempt's trace links to the submission and to the attempt before."""
    desk = Desk()
    desk.runner._trace = lambda: "00-a-1-01"
    log = await cut(desk, Store(traceparent="00-s-1-01"))
    later = Store(log=log, number=2, resumed=True, traceparent="00-s-1-01")
    await worked(desk, ScriptedAgent(scripted.at_once), later)
    links = [fact.links for fact in desk.facts_of(RunStarted)]
    assert links == [("00-s-1-01",), ("00-s-1-01", "00-a-1-01")]


async def test_deadline_counts_from_the_first_start() -> None:
    """The deadline of a run counts from its first start, and its log continues."""
    desk = Desk()
    log = await cut(desk, Store())
    began = time.time() - 10
    late = Store(timeout_s=10.2, started_at=began, log=log, number=2, resumed=True)
    before = scripted.loop_time()
    result = await worked(desk, ScriptedAgent(scripted.after(60)), late)
    assert result["outcome"] is Outcome.TIMEOUT
    assert scripted.loop_time() - before == pytest.approx(0.2, abs=0.1)
    assert min(late.rows) == len(log)


async def test_row_that_is_being_stored_at_the_deadline_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The write of a row has no deadline of its own: the end waits for it, and follows it."""
    desk, store, seen = Desk(), Store(timeout_s=0.5), list[float]()

    async def write(offset: int, row: Mapping[str, Any]) -> None:
        seen.append(remaining())
        await asyncio.sleep(0.6)  # longer than the run may take
        await Store.write(store, offset, row)

    async def acts(call: AgentCall) -> str:
        assert call.fence is not None
        await call.fence.confirm_owned()
        return "done"

    monkeypatch.setattr(store, "write", write)
    result = await worked(desk, ScriptedAgent(acts), store)
    assert result["outcome"] is Outcome.TIMEOUT
    assert set(seen) == {math.inf}
    assert store.written[0] == "run"


async def test_attempt_that_starts_while_its_process_drains_is_handed_over() -> None:
    """A run whose start in the store was slow does not begin once its process stops."""
    desk, store, agent = Desk(), Store(), ScriptedAgent(scripted.at_once)
    desk.runner.draining = True
    with pytest.raises(HandedOver):
        await worked(desk, agent, store)
    assert (agent.calls, desk.facts) == ([], [])


async def test_refused_row_without_a_writer_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is refused after its writer left is no unhandled error."""
    desk, store = Desk(), Store()
    unheard: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))

    async def refuse(offset: int, row: Mapping[str, Any]) -> None:
        await came_true(desk.idle, "the run ended")
        raise HandedOver

    async def answers(call: AgentCall) -> str:
        return "done"

    monkeypatch.setattr(store, "write", refuse)
    with pytest.raises(HandedOver):
        await worked(desk, ScriptedAgent(answers), store)
    gc.collect()
    assert not unheard


@pytest.mark.parametrize("stops", [True, False])
async def test_end_of_a_cancelled_run_is_stored_once(
    monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    """The end is stored once, when the store is back, and whether the work has stopped."""
    desk, store = Desk(), Store()
    stored: list[tuple[Body, bool]] = []
    away = [StoreUnavailable(), StoreUnavailable()]

    async def report_stop(body: Body, *, stuck: bool) -> None:
        if away:
            raise away.pop()
        stored.append((body, stuck))

    monkeypatch.setattr(store, "report_stop", report_stop)
    door = asyncio.Event()
    agent = ScriptedAgent(scripted.after(60) if stops else scripted.stubborn(door))
    render: Callable[..., Mapping[str, Any]] = lambda run, ended: {"outcome": ended.outcome}  # noqa: E731
    background = Background(desk.runner, lambda: {"scripted": agent}, render)
    working = asyncio.create_task(background.execute(store))
    await came_true(lambda: agent.calls, "the attempt began")
    background.stop("t", "of another attempt", True)
    assert desk.runner.in_flight["t"].stopping is None
    background.stop("t", "c", True)
    with pytest.raises(Cancelled):
        async with asyncio.timeout(60):
            await working
    door.set()
    assert stored == [({"outcome": Outcome.CANCELLED}, not stops)]
