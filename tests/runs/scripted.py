"""A fake agent of the core's own port, and a runner that records its facts."""

import asyncio
import time
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

Script: TypeAlias = Callable[[AgentCall], Awaitable[str | AgentAnswer]]


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


def stubborn(door: asyncio.Event) -> Script:
    """A script that swallows every cancellation until an event, or for a minute."""

    async def script(_: AgentCall) -> str:
        end = time.monotonic() + 60
        while not door.is_set() and time.monotonic() < end:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return "too late"

    return script


def until(door: asyncio.Event) -> Script:
    """A script that waits for an event."""

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
            at=time.monotonic() if at is None else at,
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
            at=time.monotonic(),
            call_id=call_id,
            provider="fake",
            model="fake",
            started_at=time.monotonic(),
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
            at=time.monotonic(),
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
            at=time.monotonic(),
            call_id=call_id,
            tool="look",
            started_at=time.monotonic(),
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
            at=time.monotonic(),
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

    def __post_init__(self) -> None:
        admission = Admission(self.slots, self.queue)
        self.runner = Runner(admission, self.threads, self.facts.append, self.keep)

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
        return self.runner.start(ScriptedAgent(script), request, mode)

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
        async with asyncio.timeout(30):
            while self.runner.is_stuck(run):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.005)

    def idle(self) -> bool:
        """Whether every slot and queue position is free."""
        admission = self.runner.admission
        return not (admission.running or admission.waiting or self.runner.in_flight)
