"""The progress of a run as plain JSON, so that another attempt can continue the counts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from app.runs.model import NO_USAGE, CallOutcome, PhaseKind, Step, Timings, Usage
from app.runs.progress import Progress


def of(progress: Progress, steps_reported: int, *, content: bool) -> dict[str, Any]:
    """The counts and times so far, and the steps after the first `steps_reported`.

    If the run started again, steps reported before that are no longer among its steps.

    The arguments and results of tools are included only with `content`: they are stored as long
    as the run.

    `tool_calls` is for readers of the progress only: another attempt counts finished steps, since
    it repeats a call that has not ended.
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
    """Continue from the rows of earlier attempts; time that no row accounts for was `other`.

    With `whole` the run starts again: the cost of earlier attempts still counts, their iterations
    and steps do not.
    """
    rows = [row["progress"] for row in log if "progress" in row]
    if not rows:
        return
    last = rows[-1]
    progress.usage = Usage(**last["usage"])
    progress.cost_usd = last["cost_usd"]
    progress.unpriced = last["unpriced"]
    progress.ttft_s = last["ttft_s"]
    # Rows of earlier versions have only the count of tool calls, or only the steps.
    progress.acted = last.get("acted", bool(last.get("tool_calls") or _steps(rows)))
    if not whole:
        progress.iterations = last["iterations"]
        progress.steps = _steps(rows)
        progress.tools.update(step.tool for step in progress.steps)
        progress.tool_calls = len(progress.steps)
    spent = {PhaseKind.LLM: last["llm_s"], PhaseKind.TOOL: last["tools_s"]}
    progress.account_for(spent, progress.clock.monotonic())


@dataclass(frozen=True, slots=True)
class StoredProgress:
    """The progress of a run by the last row of its log, for readers in any process.

    `iteration_limit` is None until the run has started.
    """

    iterations: int = 0
    iteration_limit: int | None = None
    tool_calls: int = 0
    usage: Usage = NO_USAGE
    cost_usd: float | None = None
    timings: Timings = field(default_factory=Timings)
    steps: tuple[Step, ...] = ()


def read(log: Sequence[Mapping[str, Any]]) -> StoredProgress:
    """The progress in the log of a run; rows of earlier versions lack some fields."""
    rows = [row["progress"] for row in log if "progress" in row]
    if not rows:
        return StoredProgress()
    steps = _steps(rows)
    last = rows[-1]
    limits = [
        data["iteration_limit"] for row in log for name, data in row["events"] if name == "run"
    ]
    return StoredProgress(
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


def _steps(rows: Sequence[Mapping[str, Any]]) -> list[Step]:
    steps: list[Step] = []
    for row in rows:
        # An attempt that starts again reports its steps from the first one on.
        del steps[row.get("steps_before", len(steps)) :]
        steps += [_step(step) for step in row["steps"]]
    return steps


def _step(fields: Mapping[str, Any]) -> Step:
    return Step(**{**fields, "outcome": CallOutcome(fields["outcome"])})
