"""What a run has done so far, as plain JSON, so that another attempt can go on counting."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from app.runs.model import CallOutcome, PhaseKind, Step, Usage
from app.runs.progress import Progress


def taken(progress: Progress, steps_told: int) -> dict[str, Any]:
    """The counts and times so far, and the steps after those that were told before.

    A call that has not ended is not counted: if it is lost, another attempt makes it again.
    """
    timings = progress.timings()
    return {
        "iterations": progress.iterations,
        "usage": asdict(progress.usage),
        "cost_usd": progress.cost_usd,
        "unpriced": progress.unpriced,
        "ttft_s": progress.ttft_s,
        "llm_s": timings.llm_s,
        "tools_s": timings.tools_s,
        "steps": [asdict(step) for step in progress.steps[steps_told:]],
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
    if not whole:
        progress.iterations = last["iterations"]
        progress.steps = [_step(step) for snapshot in said for step in snapshot["steps"]]
        progress.tools.update(step.tool for step in progress.steps)
        progress.tool_calls = len(progress.steps)
    progress.account_for(
        {PhaseKind.LLM: last["llm_s"], PhaseKind.TOOL: last["tools_s"]}, time.monotonic()
    )


def _step(told: Mapping[str, Any]) -> Step:
    return Step(**{**told, "outcome": CallOutcome(told["outcome"])})
