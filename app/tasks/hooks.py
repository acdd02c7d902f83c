"""The functions that the engine calls to report to the service."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from app.runs.errors import RunError


@dataclass(frozen=True, slots=True)
class Hooks:
    """Functions that the engine calls, on threads of its own."""

    # Stop the attempt with this id and claim token that executes here: the run was cancelled
    # (true), or this process has lost it (false).
    stop: Callable[[str, str, bool], None] = lambda task_id, token, cancelled: None
    # A run was requeued by the recovery: its id and its agent.
    recovered: Callable[[str, str], None] = lambda task_id, agent: None
    # Report the end of a run that was lost or cancelled, since no worker reports it.
    ended_without_worker: Callable[[str, RunError], None] = lambda task_id, error: None
    # Delete the graph checkpoints of these runs: no attempt needs them.
    delete_steps: Callable[[Sequence[str]], "Future[None]"] = lambda ids: Future()
    # Delete old rows of our own tables.
    purge: Callable[[], None] = lambda: None
    # A job raised an unexpected error. It goes on.
    failed: Callable[[BaseException], None] = lambda error: None
