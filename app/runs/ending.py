"""How a run ended, in the shapes that its readers and the sinks want."""

import asyncio
import time
from contextvars import Context
from dataclasses import replace

from app.runs import beginning
from app.runs.errors import AgentFailed, NotStorable, RunError
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
from app.runs.model import AgentAnswer, CallOutcome, Mode, Outcome, Phase

_CALL_OUTCOMES = {
    Outcome.TIMEOUT: CallOutcome.TIMEOUT,
    Outcome.FAILED: CallOutcome.FAILED,
    Outcome.INTERRUPTED: CallOutcome.INTERRUPTED,
}


def closed(
    started: ModelCallStarted | ToolCallStarted | SubAgentStarted, run_outcome: Outcome, now: float
) -> ModelCallFinished | ToolCallFinished | SubAgentFinished:
    """The end of a call that was open when its run ended; LangChain says nothing of it."""
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
    """The ends of all calls that are open, the innermost first."""
    now = time.monotonic()
    started = [call.started for call in run.progress.open.values()]
    inner = [call for call in started if call.parent_id is not None]
    own = [call for call in started if call.parent_id is None]
    return [closed(call, outcome, now) for call in (*reversed(inner), *own)]


def as_run_error(raised: BaseException | None) -> RunError:
    """What a task raised, as an error of the core."""
    if isinstance(raised, RunError):
        return raised
    failure = AgentFailed()
    failure.__cause__ = raised
    return failure


def forbid_repeats(run: Run, error: RunError | None) -> None:
    """After a failure a repeat would call again the tools that had begun.

    With an Idempotency-Key the caller has given the repeat a name, by which they can tell.
    """
    if error is None or error.outcome is not Outcome.FAILED:
        return
    if run.progress.acted and run.request.operation is None:
        error.retryable = False


def outcome(answer: AgentAnswer | None, error: RunError | None) -> Outcome:
    """How a run with this answer or this error ended."""
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
    """The end of a run, as its readers want it."""
    now = time.monotonic()
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
    """The same end for a store that refuses it: without anything that an agent or a tool said."""
    error = NotStorable()
    return replace(ended, outcome=error.outcome, answer=None, error=error, steps=())


def final_fact(run: Run, ended: Ended) -> RunFinished:
    """The end of a run, as the sinks want it."""
    return RunFinished(
        run_id=run.id,
        agent=run.agent.name,
        at=time.monotonic(),
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
        # None of a background run that ended while nobody worked it.
        attempt=run.attempt.number if run.attempt else int(run.mode is not Mode.BACKGROUND),
        stored_s=beginning.stored_s(run),
    )


def handed_over(run: Run) -> RunHandedOver:
    """The end of an attempt whose run goes on elsewhere."""
    assert run.attempt is not None
    return RunHandedOver(
        run_id=run.id,
        agent=run.agent.name,
        at=time.monotonic(),
        mode=run.mode,
        attempt=run.attempt.number,
    )


def drop_answer(run: Run) -> None:
    """Keep of a remembered run how it ended, and not what it said."""
    ended = run.ended.result()
    run.ended = asyncio.get_running_loop().create_future()
    run.ended.set_result(replace(ended, answer=None))


def release_memory(run: Run, error: RunError | None) -> None:
    """A remembered run keeps no frames and no timers alive."""
    run.timers.clear()
    run.ticket = None
    run.context = Context()
    run.request = replace(run.request, question="")
    run.fence = None
    if run.attempt is not None:
        run.attempt = replace(run.attempt, request=run.request, log=())
    if error is not None:
        error.__cause__ = error.__context__ = None
        error.__traceback__ = None
