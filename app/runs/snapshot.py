"""What a run has done so far, as plain JSON, so that another attempt can go on counting."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from app.runs.model import NO_USAGE, CallOutcome, PhaseKind, Step, Timings, Usage
from app.runs.progress import Progress


def taken(progress: Progress, steps_reported: int, *, content: bool) -> dict[str, Any]:
    """The counts and times so far, and the steps after those that were told before.

    Where the run began anew, those that were told before that are not among its steps.

    What tools were given and said is kept only with `content`: it is stored as long as the run.

    Another attempt counts tool calls by their steps: one that has not ended is made again. Those
    that have begun are for whoever reads how far the run is.
    """
    timings = progress.timings()
    steps_reported -= progress.steps_dropped
    return {
        "iterations": progress.iterations,
        "tool_calls": progress.tool_calls,
        "acted": progress.acted,
        "usage": asdict(progress.usage),
        "cost_usd": progress.cost_usd,
        "unpriced": progress.unpriced,
        "ttft_s": progress.ttft_s,
        "llm_s": timings.llm_s,
        "tools_s": timings.tools_s,
        "other_s": timings.other_s,
        "steps_before": steps_reported,
        "steps": [
            asdict(step if content else replace(step, arguments=None, result=None))
            for step in progress.steps[steps_reported:]
        ],
    }


def restore(progress: Progress, log: Sequence[Mapping[str, Any]], *, whole: bool) -> None:
    """Go on from what earlier attempts wrote; time that nobody accounted for was `other`.

    With `whole` the work is done again from its beginning: what it cost still counts, its
    iterations and steps do not.
    """
    said = [row["progress"] for row in log if "progress" in row]
    if not said:
        return
    last = said[-1]
    progress.usage = Usage(**last["usage"])
    progress.cost_usd = last["cost_usd"]
    progress.unpriced = last["unpriced"]
    progress.ttft_s = last["ttft_s"]
    # Rows of earlier versions tell of tools only.
    progress.acted = last.get("acted", bool(last.get("tool_calls") or _steps(said)))
    if not whole:
        progress.iterations = last["iterations"]
        progress.steps = _steps(said)
        progress.tools.update(step.tool for step in progress.steps)
        progress.tool_calls = len(progress.steps)
    progress.account_for(
        {PhaseKind.LLM: last["llm_s"], PhaseKind.TOOL: last["tools_s"]}, time.monotonic()
    )


@dataclass(frozen=True, slots=True)
class SoFar:
    """How far a run is by the last row of its log, for whoever reads it from elsewhere.

    The limit is None until it has begun.
    """

    iterations: int = 0
    iteration_limit: int | None = None
    tool_calls: int = 0
    usage: Usage = NO_USAGE
    cost_usd: float | None = None
    timings: Timings = field(default_factory=Timings)
    steps: tuple[Step, ...] = ()


def read(log: Sequence[Mapping[str, Any]]) -> SoFar:
    """What the log of a run tells; rows of earlier versions tell a little less."""
    said = [row["progress"] for row in log if "progress" in row]
    if not said:
        return SoFar()
    steps = _steps(said)
    last = said[-1]
    limits = [
        data["iteration_limit"] for row in log for name, data in row["events"] if name == "run"
    ]
    return SoFar(
        iterations=last["iterations"],
        iteration_limit=limits[-1] if limits else None,
        tool_calls=last.get("tool_calls", len(steps)),
        usage=Usage(**last["usage"]),
        cost_usd=last["cost_usd"],
        timings=Timings(
            llm_s=last["llm_s"], tools_s=last["tools_s"], other_s=last.get("other_s", 0.0)
        ),
        steps=tuple(steps),
    )


def _steps(said: Sequence[Mapping[str, Any]]) -> list[Step]:
    steps: list[Step] = []
    for told in said:
        # An attempt that began anew tells its steps from the first one on.
        del steps[told.get("steps_before", len(steps)) :]
        steps += [_step(step) for step in told["steps"]]
    return steps


def _step(told: Mapping[str, Any]) -> Step:
    return Step(**{**told, "outcome": CallOutcome(told["outcome"])})
