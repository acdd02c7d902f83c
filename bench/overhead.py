"""The cost of our adapter in-process: callback handler, tool wrapper and counting, no HTTP.

Even an empty handler makes LangChain do more work. So our cost is the difference to an agent with
an empty handler.
"""

import asyncio
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import uvloop
from langchain_core.callbacks import BaseCallbackHandler

from app.agents import registry
from app.runs.admission import Admission
from app.runs.events import Emit, Event
from app.runs.model import AgentAnswer, AgentInfo, Mode, RunRequest
from app.runs.ports import Agent, AgentCall
from app.runs.runner import Runner
from app.runs.threads import RunThreads
from app.telemetry.logs import Log
from app.telemetry.pipeline import Pipeline
from bench import agents, table
from bench.load import WrongAnswer, expected
from bench.process import ROOT

ROUNDS = 30
RUNS = 15
_LONGEST_S = 25.0
_QUESTION = "Where is my order?"
_INFO = AgentInfo(name="bench", kind="")

Answer = Callable[[], Awaitable[str]]


class Empty(BaseCallbackHandler):
    """Is called for every event, in the run's own task, and does nothing."""

    run_inline = True


def run() -> bool:
    """Measure and print. Returns false if an answer was wrong."""
    log = Log()
    with open(os.devnull, "w") as nowhere, _receiver() as url:
        log.start(json=True, level="info", version="0", instance="bench", stream=nowhere)
        return _measured(Telemetry(log, url))


def _measured(telemetry: "Telemetry") -> bool:
    try:
        uvloop.run(_both(telemetry))
    except WrongAnswer as wrong:
        print(f"\n  {wrong}")
        return False
    return True


async def _both(telemetry: "Telemetry") -> None:
    await _compare("create_agent", await _graph_ways(telemetry))
    await _compare("AgentExecutor", await _executor_ways(telemetry))


async def _graph_ways(telemetry: "Telemetry") -> Mapping[str, Answer]:
    agent = agents.graph(0)

    async def invoked(config: Any = None) -> str:
        state = await agent.ainvoke({"messages": [("user", _QUESTION)]}, config)
        return str(state["messages"][-1].text)

    async def streamed() -> str:
        state: Any = {}
        async for state in agent.astream(  # noqa: B007 - the last one is the answer
            {"messages": [("user", _QUESTION)]}, stream_mode="values"
        ):
            pass
        return str(state["messages"][-1].text)

    return {
        "bare": invoked,
        "bare, streamed": streamed,
        "empty handler": lambda: invoked({"callbacks": [Empty()]}),
        **await _ours(registry.adapt(agents.graph(0), "bench", _INFO), telemetry),
    }


async def _executor_ways(telemetry: "Telemetry") -> Mapping[str, Answer]:
    agent = agents.executor(0)

    async def invoked(config: Any = None) -> str:
        return str((await agent.ainvoke({"input": _QUESTION}, config))["output"])

    async def streamed() -> str:
        chunk: Any = {}
        async for chunk in agent.astream({"input": _QUESTION}):  # noqa: B007 - the last one
            pass
        return str(chunk["output"])

    return {
        "bare": invoked,
        "bare, streamed": streamed,
        "empty handler": lambda: invoked({"callbacks": [Empty()]}),
        **await _ours(registry.adapt(agents.executor(0), "bench", _INFO), telemetry),
    }


class Caller:
    """An agent that only stores its call, which the runner builds."""

    info = _INFO
    call: AgentCall

    async def answer(self, call: AgentCall) -> AgentAnswer:
        """Store the call."""
        self.call = call
        return AgentAnswer("called")


async def _ours(agent: Agent, telemetry: "Telemetry") -> Mapping[str, Answer]:
    runner = Runner(Admission(64, 64), RunThreads(16), _nobody, keep_finished=500)
    request = RunRequest(_QUESTION, timeout_s=30.0)
    caller = Caller()
    await runner.start(caller, request, Mode.SYNC).ended
    call = replace(caller.call, emit=_nobody)

    async def adapted() -> str:
        return (await agent.answer(call)).text

    return {
        "our adapter": adapted,
        "our adapter and runner": _driven(agent, _nobody),
        "with metrics and logs": _driven(agent, telemetry.pipeline(agent).emit),
        "with spans to a receiver, too": _driven(agent, telemetry.exporting(agent).emit),
    }


def _driven(agent: Agent, emit: Emit) -> Answer:
    runner = Runner(Admission(64, 64), RunThreads(16), emit, keep_finished=500)
    request = RunRequest(_QUESTION, timeout_s=30.0)

    async def driven() -> str:
        ended = await runner.start(agent, request, Mode.SYNC).ended
        if ended.answer is None:
            raise WrongAnswer(f"the run ended as {ended.outcome}")
        return ended.answer.text

    return driven


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Builds telemetry over one log, with spans to the receiver at `url`."""

    log: Log
    url: str

    def pipeline(self, agent: Agent) -> Pipeline:
        """All of the telemetry but spans."""
        pipeline = Pipeline("bench", self.log)
        pipeline.open([agent.info])
        return pipeline

    def exporting(self, agent: Agent) -> Pipeline:
        """All of the telemetry, with spans."""
        os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = self.url
        pipeline = self.pipeline(agent)
        os.environ.pop("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", None)
        return pipeline


@contextmanager
def _receiver() -> Iterator[str]:
    """Run a real OTLP receiver in a process of its own, so that its CPU is not ours."""
    script = (
        "import time\nfrom tests import otlp\n"
        "with otlp.receiver() as it:\n    print(it.url, flush=True)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def _nobody(fact: Event) -> None:
    """Discard a fact, so that only its emission is measured."""


async def _compare(kind: str, ways: Mapping[str, Answer]) -> None:
    for answer in ways.values():
        await _cpu_ms(answer)  # warm
    gc.collect()
    gc.freeze()
    seen: dict[str, list[float]] = {name: [] for name in ways}
    deadline = time.monotonic() + _LONGEST_S
    for number in range(ROUNDS):
        if number > 2 and time.monotonic() > deadline:
            break
        for name, answer in ways.items():
            seen[name].append(await _cpu_ms(answer))
    bare = seen["bare"]
    table.show(
        f"{kind} in-process, model of 0 ms: {len(bare)} rounds of {RUNS} runs each",
        ["", "CPU ms a run", "least", "ratio to bare: median (least to most), of the least"],
        [
            [name, statistics.median(of), min(of), table.ratio(of, bare)]
            for name, of in seen.items()
        ],
    )
    for name in ("our adapter", "our adapter and runner"):
        beyond = _share(seen[name], seen["empty handler"], bare)
        aim = " (aim: less than 5 %)" if name == "our adapter" else ""
        print(f"  {name} beyond an empty handler: {beyond:+.1f} % of a bare run{aim}", flush=True)


def _share(ours: Sequence[float], theirs: Sequence[float], whole: Sequence[float]) -> float:
    of_rounds = ((o - t) / w for o, t, w in zip(ours, theirs, whole, strict=True))
    return 100 * statistics.median(of_rounds)


async def _cpu_ms(answer: Answer) -> float:
    """Return the CPU of one run, each in a task of its own as in a server."""
    gc.collect()
    began = time.process_time()
    for _ in range(RUNS):
        text = await asyncio.create_task(_awaited(answer))
        if text != expected(_QUESTION):
            raise WrongAnswer(f"{text!r}, wanted {expected(_QUESTION)!r}")
    return (time.process_time() - began) / RUNS * 1000


async def _awaited(answer: Answer) -> str:
    return await answer()
