"""The handler for agents in other programs: it only watches, and stops nothing.

Such a run has no runner: it starts and ends with its outermost chain. One handler may watch many
runs at once, so each callback finds its run by its parent.
"""

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

from langgraph.errors import GraphRecursionError

from app.agents.error_translation import as_run_error
from app.agents.handler.callback import RunHandler
from app.agents.handler.interceptor import CallInterceptor
from app.agents.handler.library_patches import InterceptingHandler
from app.runs.errors import Cancelled, Interrupted, RunError
from app.runs.events import Emit, Event, RunFinished, RunStarted
from app.runs.model import EarlyStopping, Mode, Outcome
from app.runs.ports import AgentCall, Price
from app.runs.progress import Progress

# Effectively no limit: this handler does not stop runs.
_NO_LIMIT = 1_000_000_000
# Answers of the libraries at their own limits.
_LIMIT_SENTENCES = ("Agent stopped due to", "Model call limits exceeded")


class WatchedRun:
    """One run that another program drives."""

    def __init__(self, agent: str, emit: Emit, price: Price) -> None:
        self.run_fields = {"run_id": str(uuid.uuid4()), "agent": agent}
        self.began_at = time.monotonic()
        self._emit = emit
        self._progress = Progress(self.began_at)
        self._lock = threading.RLock()
        call = AgentCall(
            self.run_fields["run_id"], "", _NO_LIMIT, EarlyStopping.FORCE, None, self.emit, price
        )
        self.handler = RunHandler(call, agent)
        self.emit(
            RunStarted(
                run_id=self.run_fields["run_id"],
                agent=self.run_fields["agent"],
                at=self.began_at,
                mode=Mode.SYNC,
                iteration_limit=0,
                timeout_s=0.0,
                queue_wait_s=0.0,
            )
        )

    def emit(self, fact: Event) -> None:
        """Record a fact and emit it. Tools emit from their own threads."""
        with self._lock:
            self._progress.add(fact)
            self._emit(fact)

    def end(self, outcome: Outcome, error: RunError | None = None) -> None:
        """The outermost chain ended."""
        now = time.monotonic()
        done = self._progress
        self.emit(
            RunFinished(
                run_id=self.run_fields["run_id"],
                agent=self.run_fields["agent"],
                at=now,
                mode=Mode.SYNC,
                outcome=outcome,
                code=error.code if error else None,
                timeout_s=0.0,
                duration_s=now - self.began_at,
                timings=done.timings(now),
                iterations=done.iterations,
                iteration_limit=0,
                tool_calls=done.tool_calls,
                tools=dict(done.tools),
                usage=done.usage,
                cost_usd=done.cost_usd,
                ttft_s=done.ttft_s,
                phase=done.phase if error else None,
                error=error.__cause__ if error else None,
                metadata={},
            )
        )


def _forwarded(name: str, *, last: bool = False) -> Callable[..., None]:
    """Return a callback that forwards to the run's handler. `last` ends the call."""

    def callback(self: "WatchHandler", *args: Any, run_id: UUID, **kwargs: Any) -> None:
        watched = self.runs.get(run_id) or self.runs.get(kwargs.get("parent_run_id") or run_id)
        if watched is None:
            return  # a model or tool call outside any chain
        self.runs[run_id] = watched
        getattr(watched.handler, name)(*args, run_id=run_id, **kwargs)
        if last:
            del self.runs[run_id]

    return callback


class WatchHandler(InterceptingHandler):
    """Emits the facts of all runs of one agent."""

    run_inline = True

    on_chat_model_start = _forwarded("on_chat_model_start")
    on_llm_start = _forwarded("on_llm_start")
    on_llm_new_token = _forwarded("on_llm_new_token")
    on_llm_end = _forwarded("on_llm_end", last=True)
    on_llm_error = _forwarded("on_llm_error", last=True)
    on_tool_start = _forwarded("on_tool_start")
    on_tool_end = _forwarded("on_tool_end", last=True)
    on_tool_error = _forwarded("on_tool_error", last=True)
    on_agent_action = _forwarded("on_agent_action")

    def __init__(self, agent: str, emit: Emit, price: Price) -> None:
        self.runs: dict[UUID, WatchedRun] = {}
        self._new = partial(WatchedRun, agent, emit, price)

    def interceptor(self, parent_id: UUID | None) -> CallInterceptor | None:
        """Return the interceptor of a call inside that chain or tool call."""
        watched = self.runs.get(parent_id) if parent_id else None
        return None if watched is None else watched.handler.interceptor(parent_id)

    def on_chain_start(
        self,
        serialized: Any,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """The outermost chain starts a run. Other chains belong to it."""
        outer = self.runs.get(parent_run_id) if parent_run_id else None
        watched = self.runs[run_id] = outer or self._new()
        arguments = {**kwargs, "run_id": run_id, "parent_run_id": parent_run_id}
        watched.handler.on_chain_start(serialized, inputs, **arguments)

    def on_chain_end(
        self, outputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """The end of the outermost chain ends the run."""
        watched = self.runs.pop(run_id, None)
        if watched is None:
            return
        watched.handler.on_chain_end(outputs, run_id=run_id, **kwargs)
        if parent_run_id in self.runs:
            return
        self._drop(watched)
        if watched.handler.interrupted:
            watched.end(Outcome.INTERRUPTED, Interrupted())
        elif _last_text(outputs).startswith(_LIMIT_SENTENCES):
            watched.end(Outcome.ITERATION_LIMIT)
        else:
            watched.end(Outcome.COMPLETED)

    def on_chain_error(
        self,
        error: BaseException,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """An error of the outermost chain ends the run."""
        watched = self.runs.pop(run_id, None)
        if watched is None:
            return
        watched.handler.on_chain_error(error, run_id=run_id, **kwargs)
        if parent_run_id in self.runs:
            return
        self._drop(watched)
        if isinstance(error, GraphRecursionError):
            watched.end(Outcome.ITERATION_LIMIT)
        elif isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
            watched.end(Outcome.CANCELLED, Cancelled())
        else:
            failure = as_run_error(watched.handler, error)
            watched.end(failure.outcome, failure)

    def _drop(self, watched: WatchedRun) -> None:
        """Drop cancelled calls: LangChain sends no callback for their end."""
        watched_ids = [run_id for run_id, owner in list(self.runs.items()) if owner is watched]
        for run_id in watched_ids:
            del self.runs[run_id]


def _last_text(outputs: Any) -> str:
    """Return the answer text from the output of a graph or executor."""
    if not isinstance(outputs, dict):
        return ""
    messages = outputs.get("messages")
    last = messages[-1] if messages else outputs.get("output", "")
    return str(getattr(last, "text", last))
