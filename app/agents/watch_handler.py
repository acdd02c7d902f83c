"""The handler on its own: watches agents that run in somebody else's program, and stops nothing.

There a run has no runner: it begins when the outermost chain starts and ends when that chain
does. One handler may watch many runs at once, so each callback finds its run by its parent.
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

from app.agents.callback import RunHandler
from app.agents.error_translation import as_run_error
from app.agents.interceptor import CallInterceptor
from app.agents.library_patches import InterceptingHandler
from app.runs.errors import Cancelled, Interrupted, RunError
from app.runs.events import Emit, Event, RunFinished, RunStarted
from app.runs.model import EarlyStopping, Mode, Outcome
from app.runs.ports import AgentCall, Price
from app.runs.progress import Progress

# More iterations than anybody makes: it is not this handler's part to stop a run.
_NO_LIMIT = 1_000_000_000
# How the libraries answer when limits of their own are reached.
_LIMIT_SENTENCES = ("Agent stopped due to", "Model call limits exceeded")


class WatchedRun:
    """One run that somebody else drives."""

    def __init__(self, agent: str, emit: Emit, price: Price) -> None:
        self.about = {"run_id": str(uuid.uuid4()), "agent": agent}
        self.began_at = time.monotonic()
        self._emit = emit
        self._progress = Progress(self.began_at)
        self._lock = threading.RLock()
        call = AgentCall(
            self.about["run_id"], "", _NO_LIMIT, EarlyStopping.FORCE, None, self.tell, price
        )
        self.handler = RunHandler(call, agent)
        self.tell(
            RunStarted(
                run_id=self.about["run_id"],
                agent=self.about["agent"],
                at=self.began_at,
                mode=Mode.SYNC,
                iteration_limit=0,
                timeout_s=0.0,
                queue_wait_s=0.0,
            )
        )

    def tell(self, fact: Event) -> None:
        """Fold a fact in and pass it on; tools tell from their own threads."""
        with self._lock:
            self._progress.add(fact)
            self._emit(fact)

    def end(self, outcome: Outcome, error: RunError | None = None) -> None:
        """The outermost chain ended."""
        now = time.monotonic()
        done = self._progress
        self.tell(
            RunFinished(
                run_id=self.about["run_id"],
                agent=self.about["agent"],
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


def _passed_on(name: str, *, last: bool = False) -> Callable[..., None]:
    """A callback that the run's own handler takes; `last` is the last one of a call."""

    def callback(self: "WatchHandler", *args: Any, run_id: UUID, **told: Any) -> None:
        watched = self.runs.get(run_id) or self.runs.get(told.get("parent_run_id") or run_id)
        if watched is None:
            return  # a model or a tool that was called outside of any chain
        self.runs[run_id] = watched
        getattr(watched.handler, name)(*args, run_id=run_id, **told)
        if last:
            del self.runs[run_id]

    return callback


class WatchHandler(InterceptingHandler):
    """Tells `emit` what the runs under its name do."""

    run_inline = True

    on_chat_model_start = _passed_on("on_chat_model_start")
    on_llm_start = _passed_on("on_llm_start")
    on_llm_new_token = _passed_on("on_llm_new_token")
    on_llm_end = _passed_on("on_llm_end", last=True)
    on_llm_error = _passed_on("on_llm_error", last=True)
    on_tool_start = _passed_on("on_tool_start")
    on_tool_end = _passed_on("on_tool_end", last=True)
    on_tool_error = _passed_on("on_tool_error", last=True)
    on_agent_action = _passed_on("on_agent_action")

    def __init__(self, agent: str, emit: Emit, price: Price) -> None:
        self.runs: dict[UUID, WatchedRun] = {}
        self._new = partial(WatchedRun, agent, emit, price)

    def around(self, parent_id: UUID | None) -> CallInterceptor | None:
        """What stands around a call that is made inside that chain or tool call."""
        watched = self.runs.get(parent_id) if parent_id else None
        return None if watched is None else watched.handler.around(parent_id)

    def on_chain_start(
        self,
        serialized: Any,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **told: Any,
    ) -> None:
        """The outermost chain is a run; the others belong to it."""
        outer = self.runs.get(parent_run_id) if parent_run_id else None
        watched = self.runs[run_id] = outer or self._new()
        about = {**told, "run_id": run_id, "parent_run_id": parent_run_id}
        watched.handler.on_chain_start(serialized, inputs, **about)

    def on_chain_end(
        self, outputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **told: Any
    ) -> None:
        """The end of the outermost chain is the end of the run."""
        watched = self.runs.pop(run_id, None)
        if watched is None:
            return
        watched.handler.on_chain_end(outputs, run_id=run_id, **told)
        if parent_run_id in self.runs:
            return
        self._forget(watched)
        if watched.handler.waiting:
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
        **told: Any,
    ) -> None:
        """What ends the outermost chain ends the run."""
        watched = self.runs.pop(run_id, None)
        if watched is None:
            return
        watched.handler.on_chain_error(error, run_id=run_id, **told)
        if parent_run_id in self.runs:
            return
        self._forget(watched)
        if isinstance(error, GraphRecursionError):
            watched.end(Outcome.ITERATION_LIMIT)
        elif isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
            watched.end(Outcome.CANCELLED, Cancelled())
        else:
            failure = as_run_error(watched.handler, error)
            watched.end(failure.outcome, failure)

    def _forget(self, watched: WatchedRun) -> None:
        """LangChain says nothing of calls that were cancelled: drop what is left of them."""
        watched_ids = [run_id for run_id, owner in list(self.runs.items()) if owner is watched]
        for run_id in watched_ids:
            del self.runs[run_id]


def _last_text(outputs: Any) -> str:
    """The answer in what a graph or an executor returns."""
    if not isinstance(outputs, dict):
        return ""
    messages = outputs.get("messages")
    last = messages[-1] if messages else outputs.get("output", "")
    return str(getattr(last, "text", last))
