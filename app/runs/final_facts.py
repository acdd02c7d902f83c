"""The last facts of a run: one for each open call, and its own final fact."""

from app.runs import beginning
from app.runs.events import (
    ModelCallFinished,
    ModelCallStarted,
    RunFinished,
    RunHandedOver,
    SubAgentFinished,
    SubAgentStarted,
    ToolCallFinished,
    ToolCallStarted,
)
from app.runs.live import Ended, Run
from app.runs.model import CallOutcome, Mode, Outcome

_CALL_OUTCOMES = {
    Outcome.TIMEOUT: CallOutcome.TIMEOUT,
    Outcome.FAILED: CallOutcome.FAILED,
    Outcome.INTERRUPTED: CallOutcome.INTERRUPTED,
}


def closed(
    started: ModelCallStarted | ToolCallStarted | SubAgentStarted, run_outcome: Outcome, now: float
) -> ModelCallFinished | ToolCallFinished | SubAgentFinished:
    """The final fact of a call that was open when its run ended; LangChain emits none."""
    run_id, agent, call_id = started.run_id, started.agent, started.call_id
    outcome = _CALL_OUTCOMES.get(run_outcome, CallOutcome.CANCELLED)
    if isinstance(started, SubAgentStarted):
        return SubAgentFinished(
            run_id=run_id,
            agent=agent,
            at=now,
            call_id=call_id,
            outcome=outcome,
            tally=started.tally,
        )
    if isinstance(started, ModelCallStarted):
        return ModelCallFinished(
            run_id=run_id,
            agent=agent,
            at=now,
            call_id=call_id,
            provider=started.provider,
            model=started.model,
            started_at=started.at,
            outcome=outcome,
        )
    return ToolCallFinished(
        run_id=run_id,
        agent=agent,
        at=now,
        call_id=call_id,
        tool=started.tool,
        started_at=started.at,
        outcome=outcome,
    )


def of_open_calls(
    run: Run, outcome: Outcome
) -> list[ModelCallFinished | ToolCallFinished | SubAgentFinished]:
    """The final facts of all open calls, the innermost first."""
    now = run.clock.monotonic()
    started = [call.started for call in run.progress.open.values()]
    inner = [call for call in started if call.parent_id is not None]
    own = [call for call in started if call.parent_id is None]
    return [closed(call, outcome, now) for call in (*reversed(inner), *own)]


def of_run(run: Run, ended: Ended) -> RunFinished:
    """The final fact of a run."""
    return RunFinished(
        run_id=run.id,
        agent=run.agent.name,
        at=run.clock.monotonic(),
        mode=run.mode,
        outcome=ended.outcome,
        code=ended.error.code if ended.error else None,
        timeout_s=run.request.timeout_s,
        duration_s=ended.duration_s,
        timings=ended.timings,
        iterations=ended.iterations,
        iteration_limit=run.iteration_limit,
        tool_calls=ended.tool_calls,
        tools=dict(run.progress.tools),
        usage=ended.usage,
        cost_usd=ended.cost_usd,
        ttft_s=run.progress.ttft_s,
        limit=ended.limit,
        refused=ended.refused,
        phase=ended.phase,
        error=ended.error.__cause__ if ended.error else None,
        metadata=run.request.metadata,
        # 0 for a background run that ended without a worker.
        attempt=run.attempt.number if run.attempt else int(run.mode is not Mode.BACKGROUND),
        stored_s=beginning.stored_s(run),
    )


def handed_over(run: Run) -> RunHandedOver:
    """The final fact of an attempt whose run another process continues."""
    assert run.attempt is not None
    return RunHandedOver(
        run_id=run.id,
        agent=run.agent.name,
        at=run.clock.monotonic(),
        mode=run.mode,
        attempt=run.attempt.number,
    )
