"""A fake agent of the core's own port, and a runner that records its facts."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from app.runs.admission import Admission
from app.runs.events import (
    Event,
    IterationCounted,
    ModelCallFinished,
    ModelCallStarted,
    RunFinished,
    ToolCallFinished,
    ToolCallStarted,
)
from app.runs.live import Ended, Run
from app.runs.model import (
    NO_USAGE,
    AgentAnswer,
    AgentInfo,
    CallOutcome,
    Mode,
    RunRequest,
    Usage,
)
from app.runs.ports import AgentCall
from app.runs.runner import Runner
from app.runs.threads import DaemonThreads, RunThreads
from tests.runs import virtual_time
from tests.waiting import came_true

Script: TypeAlias = Callable[[AgentCall], Awaitable[str | AgentAnswer]]


def loop_time() -> float:
    """The time of the running loop, which is virtual where its test asks for that."""
    return asyncio.get_running_loop().time()


class ScriptedAgent:
    """Does what its script does; `calls` keeps every run it was asked for."""

    def __init__(self, script: Script, name: str = "scripted", *, resumes: bool = False) -> None:
        self.info = AgentInfo(name=name, kind="fake", resumes=resumes)
        self.calls: list[AgentCall] = []
        self._script = script

    async def answer(self, call: AgentCall) -> AgentAnswer:
        """Follow the script."""
        self.calls.append(call)
        scripted = await self._script(call)
        return scripted if isinstance(scripted, AgentAnswer) else AgentAnswer(scripted)


async def at_once(call: AgentCall) -> str:
    """A script that answers without a pause."""
    return f"answer to {call.question}"


def after(seconds: float) -> Script:
    """A script that sleeps, and lets itself be cancelled."""

    async def script(call: AgentCall) -> str:
        await asyncio.sleep(seconds)
        return f"answer to {call.question}"

    return script


async def hangs(_: AgentCall) -> str:
    """A script that never answers, and lets itself be cancelled."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError


def stubborn(door: asyncio.Event) -> Script:
    """A script that swallows every cancellation until an event, or for a minute."""

    async def script(_: AgentCall) -> str:
        end = loop_time() + 60
        while not door.is_set() and loop_time() < end:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return "too late"

    return script


def behind(door: asyncio.Event) -> Script:
    """A script that answers once an event is set."""

    async def script(call: AgentCall) -> str:
        await door.wait()
        return f"answer to {call.question}"

    return script


def raises(error: BaseException) -> Script:
    """A script that fails."""

    async def script(_: AgentCall) -> str:
        raise error

    return script


def model_starts(call: AgentCall, call_id: str = "m", at: float | None = None) -> None:
    """Say that a model was asked."""
    call.emit(
        ModelCallStarted(
            run_id=call.run_id,
            agent="scripted",
            at=loop_time() if at is None else at,
            call_id=call_id,
            parent_id=None,
            iteration=1,
            attempt=1,
            provider="fake",
            model="fake",
        )
    )


def model_ends(
    call: AgentCall,
    call_id: str = "m",
    outcome: CallOutcome = CallOutcome.COMPLETED,
    usage: Usage = NO_USAGE,
    cost_usd: float | None = None,
) -> None:
    """Say that a model call ended, and what it cost."""
    call.emit(
        ModelCallFinished(
            run_id=call.run_id,
            agent="scripted",
            at=loop_time(),
            call_id=call_id,
            provider="fake",
            model="fake",
            started_at=loop_time(),
            outcome=outcome,
            usage=usage,
            cost_usd=cost_usd,
        )
    )


def tool_starts(call: AgentCall, tool: str = "look", call_id: str = "t") -> None:
    """Say that a tool began."""
    call.emit(
        ToolCallStarted(
            run_id=call.run_id,
            agent="scripted",
            at=loop_time(),
            call_id=call_id,
            parent_id=None,
            tool=tool,
            iteration=1,
            arguments={"order": "7"},
        )
    )


def tool_ends(call: AgentCall, call_id: str = "t", result: str = "shipped") -> None:
    """Say that a tool call ended well."""
    call.emit(
        ToolCallFinished(
            run_id=call.run_id,
            agent="scripted",
            at=loop_time(),
            call_id=call_id,
            tool="look",
            started_at=loop_time(),
            outcome=CallOutcome.COMPLETED,
            result=result,
        )
    )


def iteration(call: AgentCall, number: int = 1) -> None:
    """Say that a turn was counted."""
    call.emit(
        IterationCounted(
            run_id=call.run_id,
            agent="scripted",
            at=loop_time(),
            iteration=number,
            tool_calls=1,
        )
    )


@dataclass
class Desk:
    """A runner, every fact it emitted, and short ways to ask it."""

    slots: int = 4
    queue: int = 4
    keep: int = 100
    threads: DaemonThreads = field(default_factory=lambda: RunThreads(4))
    facts: list[Event] = field(default_factory=list)
    runner: Runner = field(init=False)
    _agents: dict[str, ScriptedAgent] = field(default_factory=dict)

    def __post_init__(self) -> None:
        clock = virtual_time.clock()
        admission = Admission(self.slots, self.queue, clock)
        self.runner = Runner(admission, self.threads, self.facts.append, self.keep, clock=clock)

    def start(
        self,
        script: Script,
        question: str = "q",
        *,
        timeout_s: float = 30.0,
        mode: Mode = Mode.SYNC,
    ) -> Run:
        """Begin a run of an agent that follows the script."""
        request = RunRequest(question=question, timeout_s=timeout_s)
        agent = ScriptedAgent(script)
        run = self.runner.start(agent, request, mode)
        self._agents[run.id] = agent
        return run

    async def working(self, script: Script, *, timeout_s: float = 30.0) -> Run:
        """Begin a run, and return it once its script has begun."""
        run = self.start(script, timeout_s=timeout_s)
        await came_true(lambda: self._agents[run.id].calls, "the script began")
        return run

    async def draining(self, notice_s: float, timeout_s: float) -> asyncio.Task[None]:
        """Begin a drain, and return it once its notice has begun, or is over if there is none."""
        drain = asyncio.create_task(self.runner.drain(notice_s, timeout_s))
        is_on = (lambda: self.runner.leaving) if notice_s else (lambda: self.runner.draining)
        await came_true(is_on, "the drain began")
        return drain

    async def ask(self, script: Script, question: str = "q", *, timeout_s: float = 30.0) -> Ended:
        """Begin a run and wait for its end."""
        run = self.start(script, question, timeout_s=timeout_s)
        return await asyncio.shield(run.ended)

    def finals(self, run: Run | None = None) -> list[RunFinished]:
        """The final facts, of one run or of all."""
        finals = [fact for fact in self.facts if isinstance(fact, RunFinished)]
        return [fact for fact in finals if run is None or fact.run_id == run.id]

    def facts_of(self, kind: type[Event]) -> list[Any]:
        """The facts of one type, in order."""
        return [fact for fact in self.facts if isinstance(fact, kind)]

    async def release(self, run: Run) -> None:
        """Wait until the work that an ended run left behind is over."""
        await came_true(lambda: not self.runner.is_stuck(run), f"the work of {run.id} stopped")

    async def tasks_over(self) -> set[asyncio.Task[Any]]:
        """The tasks of the loop, once none of them is a run's."""

        def of_runs() -> list[str]:
            names = [task.get_name() for task in asyncio.all_tasks()]
            return [name for name in names if name.startswith("run ")]

        await came_true(lambda: not of_runs(), "the tasks of all runs ended")
        return asyncio.all_tasks()

    def idle(self) -> bool:
        """Whether every slot and queue position is free."""
        admission = self.runner.admission
        return not (admission.running or admission.waiting or self.runner.in_flight)
