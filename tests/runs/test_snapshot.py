"""The log of a run shows its reader the progress of the run."""

from dataclasses import asdict
from typing import Any

from app.runs import snapshot
from app.runs.model import CallOutcome, Step, Timings, Usage
from app.runs.progress import Progress
from app.runs.snapshot import StoredProgress


def step(name: str) -> Step:
    return Step(1, name, name, {}, "fine", CallOutcome.COMPLETED, 0.0, 1.0)


def row(*steps: str, before: int | None = 0, **counted: Any) -> dict[str, Any]:
    """A row of a log with these steps after so many that are in earlier rows."""
    progress = Progress(0.0)
    taken = snapshot.of(progress, 0 if before is None else before, content=True)
    taken |= {"steps": [asdict(step(name)) for name in steps], **counted}
    if before is None:  # as earlier versions wrote it
        for name in ("steps_before", "tool_calls", "other_s"):
            del taken[name]
    return {"events": [["run", {"iteration_limit": 7}]], "progress": taken}


def names(so_far: StoredProgress) -> list[str]:
    return [step.tool for step in so_far.steps]


def test_snapshot_of_an_empty_log() -> None:
    """A log without a row has no progress."""
    assert snapshot.read([]) == StoredProgress()


def test_last_row_has_the_counts() -> None:
    """The last row has the counts and times; the steps are those of all rows."""
    usage = {"input_tokens": 5}
    last = row("b", before=1, iterations=2, tool_calls=3, usage=usage, llm_s=1.0, other_s=0.5)
    so_far = snapshot.read([row("a", iterations=1), last])
    assert names(so_far) == ["a", "b"]
    assert (so_far.iterations, so_far.tool_calls, so_far.iteration_limit) == (2, 3, 7)
    assert so_far.usage == Usage(input_tokens=5)
    assert so_far.timings.llm_s == 1.0
    assert so_far.timings.other_s == 0.5


def test_restarted_attempt_replaces_the_steps() -> None:
    """Steps of a restarted attempt replace those of the one before."""
    assert names(snapshot.read([row("a", "b"), row("c"), row("d", before=1)])) == ["c", "d"]


def test_rows_of_an_earlier_version() -> None:
    """Rows of an earlier version are read: tool calls are the steps, and no time was `other`."""
    so_far = snapshot.read([row("a", before=None), row("b", "c", before=None, llm_s=1.0)])
    assert names(so_far) == ["a", "b", "c"]
    assert so_far.tool_calls == 3
    assert so_far.timings == Timings(llm_s=1.0)
