"""What code inside a run may know of it without being handed it: its id and its time left."""

import math
import time
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Current:
    """The run that the present task or thread works for; `ends_at` is on `time.monotonic`."""

    run_id: str
    ends_at: float


current: ContextVar[Current | None] = ContextVar("watchkeeper_run", default=None)


def remaining() -> float:
    """Seconds until the present run's deadline, at least 0.0; `math.inf` outside a run.

    Works in async tools, in sync tools on their own threads, in models and in graph nodes.
    """
    run = current.get()
    return math.inf if run is None else max(0.0, run.ends_at - time.monotonic())
