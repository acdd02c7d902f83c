"""The end of a run: its outcome, its error, and the summary for its readers."""

from dataclasses import replace

from app.runs.errors import AgentFailed, NotStorable, RunError
from app.runs.live import Ended, Run
from app.runs.model import AgentAnswer, Outcome, Phase


def as_run_error(raised: BaseException | None) -> RunError:
    """The exception of a task as a RunError."""
    if isinstance(raised, RunError):
        return raised
    failure = AgentFailed()
    failure.__cause__ = raised
    return failure


def forbid_repeats(run: Run, error: RunError | None) -> None:
    """A failed run whose tools had started is not retryable: a repeat would call them again.

    A run with an Idempotency-Key stays retryable: its tools detect the repeat by their own keys.
    """
    if error is None or error.outcome is not Outcome.FAILED:
        return
    if run.progress.acted and run.request.operation is None:
        error.retryable = False


def outcome(answer: AgentAnswer | None, error: RunError | None) -> Outcome:
    """The outcome of a run with this answer or this error."""
    if error is not None:
        return error.outcome
    limited = answer is not None and answer.limit is not None
    return Outcome.ITERATION_LIMIT if limited else Outcome.COMPLETED


def ended(
    run: Run,
    outcome: Outcome,
    answer: AgentAnswer | None,
    error: RunError | None,
    phase: Phase | None,
) -> Ended:
    """The summary of a run that ends now."""
    now = run.clock.monotonic()
    progress = run.progress
    return Ended(
        outcome=outcome,
        answer=answer,
        error=error,
        iterations=progress.iterations,
        tool_calls=progress.tool_calls,
        usage=progress.usage,
        cost_usd=progress.cost_usd,
        duration_s=now - run.arrived_at,
        timings=progress.timings(now),
        phase=phase,
        steps=tuple(progress.steps),
        limit=answer.limit if answer else None,
        refused=answer is not None and answer.refused,
    )


def as_not_storable(ended: Ended) -> Ended:
    """The same end as NotStorable, without answer and steps: the store refuses their content."""
    error = NotStorable()
    return replace(ended, outcome=error.outcome, answer=None, error=error, steps=())
