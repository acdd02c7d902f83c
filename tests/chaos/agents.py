"""Agents that do what their question plans, and leave a receipt of every tool call in a file.

The question is the plan, so any process can go on with a run, and anybody knows its answer.
"""

import asyncio
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.tools import tool

from app.runs.deadline import current
from tests import fakes
from watchkeeper import tool_call_key

RECEIPTS = "CHAOS_RECEIPTS"
# Which attempt of a run this process makes; set at each start (see `server`).
ATTEMPTS: dict[str, int] = {}
# A child that is left behind ends by itself.
CHILD_S = 120.0
# Long enough for a test to do to a process what it has in mind.
_HELD_S = 90.0


@dataclass(frozen=True)
class Plan:
    """What a run is to do: turns of parallel tool calls that take so long; some kill, or fork.

    Calls of the turn `held` do not end in the process that makes them first.
    """

    name: str
    turns: int = 1
    parallel: int = 1
    seconds: float = 0.0
    deadly: bool = False
    forks: bool = False
    held: int = -1

    def seconds_of(self, n: int) -> float:
        """How long call `n` takes, made here and now."""
        if n // self.parallel != self.held:
            return self.seconds
        receipts_of_begin = (
            r for r in receipts(_file()) if (r.what, r.name, r.n) == ("begin", self.name, n)
        )
        return _HELD_S if all(r.pid == os.getpid() for r in receipts_of_begin) else self.seconds

    @property
    def question(self) -> str:
        """The plan as a question."""
        return json.dumps(asdict(self))

    @property
    def answer(self) -> str:
        """What the agent answers to it."""
        return f"{self.name}: {self.turns * self.parallel}"


@dataclass(frozen=True)
class Receipt:
    """One line of the file: call `n` of a run's plan began or ended in a process."""

    what: str
    name: str
    n: int
    run_id: str
    pid: int
    attempt: int
    key: str | None
    at: float


def receipts(file: Path) -> list[Receipt]:
    """All of them, in order; a line that a kill cut is none."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [Receipt(**json.loads(line)) for line in lines if line.endswith("}\n")]


def _file() -> Path:
    return Path(os.environ[RECEIPTS])


def _note(what: str, name: str, n: int, pid: int | None = None) -> None:
    run = current.get()
    run_id = run.run_id if run else ""
    attempt = ATTEMPTS.get(run_id, 0)
    pid = pid or os.getpid()
    receipt = Receipt(what, name, n, run_id, pid, attempt, tool_call_key(), time.time())
    line = json.dumps(asdict(receipt)) + "\n"
    file = os.open(_file(), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def _child() -> int | None:
    """A child that outlives this process, as those of a pool of processes may."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(CHILD_S,))
    child.daemon = True
    child.start()
    return child.pid


@tool
async def work(name: str, n: int, plan: dict[str, Any]) -> str:
    """Do call `n` of a plan."""
    await asyncio.sleep(_begun(Plan(**plan), n))
    _note("end", name, n)
    return str(n)


@tool
def work_on_thread(name: str, n: int, plan: dict[str, Any]) -> str:
    """The same on a thread."""
    time.sleep(_begun(Plan(**plan), n))
    _note("end", name, n)
    return str(n)


def _begun(plan: Plan, n: int) -> float:
    """Begin a call; how long it takes."""
    if plan.forks:
        _note("forked", plan.name, n, _child())
    seconds = plan.seconds_of(n)
    _note("begin", plan.name, n)
    if plan.deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return seconds


def _follow(tool_name: str) -> fakes.Script:
    def script(messages: Sequence[BaseMessage]) -> AIMessage:
        question = next(m for m in reversed(messages) if isinstance(m, HumanMessage))
        plan = Plan(**json.loads(question.text))
        done = len(fakes.results_since_question(messages))
        if done < plan.turns * plan.parallel:
            numbers = range(done, done + plan.parallel)
            return AIMessage("", tool_calls=[_call(plan, n) for n in numbers], **_USED)
        return AIMessage(f"{plan.name}: {done}", **_USED)

    def _call(plan: Plan, n: int) -> Any:
        asked = {"name": plan.name, "n": n, "plan": asdict(plan)}
        return {"name": tool_name, "args": asked, "id": f"call-{n}", "type": "tool_call"}

    return script


_USED: dict[str, Any] = {"usage_metadata": fakes.USAGE}


def _agent(kind: str, own_tool: Any) -> Any:
    model = fakes.ScriptedModel(script=_follow(own_tool.name))
    return fakes.build(kind, model, [own_tool])


graph = _agent("create_agent", work)
own = _agent("langgraph", work_on_thread)
executor = _agent("agent_executor", work)
