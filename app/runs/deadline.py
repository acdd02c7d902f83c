"""What code inside a run may know without being handed it: the run, its time left, its call."""

import math
import time
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Current:
    """The run that the present task or thread works for; `deadline` is on `time.monotonic`."""

    run_id: str
    deadline: float


current: ContextVar[Current | None] = ContextVar("watchkeeper_run", default=None)


def remaining() -> float:
    """Seconds until the present run's deadline, at least 0.0; `math.inf` outside a run.

    Works in async tools, in sync tools on their own threads, in models and in graph nodes.
    """
    run = current.get()
    return math.inf if run is None else max(0.0, run.deadline - time.monotonic())


# Set for the time of a tool call, on whatever thread it works.
tool_call: ContextVar[str | None] = ContextVar("watchkeeper_tool_call", default=None)


def idempotency_key() -> str | None:
    """Names the present tool call for other systems; None outside a tool.

    A background run may call a tool twice, when its process dies between the tool's return and
    the record of it: both calls have this key, as long as the model repeats itself. So have the
    calls of runs that were asked for with one Idempotency-Key.
    """
    return tool_call.get()
