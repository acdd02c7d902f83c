"""The start of a run: its first fact, and the call of its agent."""

from collections.abc import Callable
from typing import Any

from app.runs.containment import Contained, original
from app.runs.errors import (
    AgentFailed,
    AnswerTooLarge,
    DeadlineExceeded,
    HandedOver,
    StoreUnavailable,
)
from app.runs.events import RunStarted
from app.runs.live import Run
from app.runs.model import AgentAnswer, Mode
from app.runs.ports import Agent, AgentCall, Price
from app.runs.rendering import TooMuch


def started(run: Run, now: float) -> RunStarted:
    """The fact that a run starts."""
    return RunStarted(
        run_id=run.id,
        agent=run.agent.name,
        at=now,
        mode=run.mode,
        iteration_limit=run.iteration_limit,
        timeout_s=run.request.timeout_s,
        queue_wait_s=now - run.arrived_at if run.attempt is None else 0.0,
        thread_id=run.request.thread_id,
        **_attempt(run),
    )


def call_for(run: Run, price: Price, fault: Callable[[], None]) -> AgentCall:
    """The call of the agent for this run."""
    return AgentCall(
        run_id=run.id,
        question=run.request.question,
        iteration_limit=run.iteration_limit,
        early_stopping=run.agent.early_stopping,
        thread_id=run.request.thread_id,
        emit=run.record,
        price=price,
        fault=fault,
        on_token=run.on_token if run.mode is Mode.STREAM else None,
        durable=run.attempt is not None,
        resumed=run.attempt is not None and run.attempt.resumed,
        iterations=run.progress.iterations,
        fence=run.fence,
        stopping=lambda: run.stopping is not None,
        operation=run.request.operation,
        answered=run.answered,
    )


async def answer(agent: Agent, call: AgentCall) -> AgentAnswer:
    """Call the agent: the body of the run's task."""
    try:
        return await agent.answer(call)
    except TooMuch as raised:
        raise AnswerTooLarge from raised
    except AgentFailed as failed:
        if isinstance(failed.__cause__, TooMuch):
            raise AnswerTooLarge from failed.__cause__
        raise
    except HandedOver as lost:
        if call.fence is None:  # its lease of the thread has expired, so its deadline has too
            raise DeadlineExceeded from lost
        await call.fence.confirm_owned()  # raises if the run was cancelled or taken over
        # We own the run, but another run owns its thread: this one was stored too late.
        raise StoreUnavailable from lost
    except (SystemExit, KeyboardInterrupt, Contained) as raised:
        raise AgentFailed from original(raised)  # an agent must not end the service


def stored_s(run: Run) -> float:
    """Seconds that a background run waited in the store before its first start."""
    return run.attempt.queued_s if run.attempt else 0.0


def _attempt(run: Run) -> dict[str, Any]:
    """The fields of RunStarted that only a background run has."""
    if run.attempt is None:
        return {}
    before = [row["trace"] for row in run.attempt.log if row.get("trace")][-1:]
    submitted = [run.attempt.traceparent] if run.attempt.traceparent else []
    return {
        "attempt": run.attempt.number,
        "stored_s": stored_s(run),
        "links": (*submitted, *before),
    }
