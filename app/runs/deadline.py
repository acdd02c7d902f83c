"""Context variables for code inside a run: the run, its deadline, the present tool call."""

import math
from contextvars import ContextVar
from dataclasses import dataclass

from app.runs.clock import SYSTEM, Clock


@dataclass(frozen=True, slots=True, eq=False)
class Current:
    """The run of the present task or thread; `deadline` is on its clock.

    Each attempt at a background run has one of its own: compare by identity, not by `run_id`.
    """

    run_id: str
    deadline: float
    clock: Clock = SYSTEM


current: ContextVar[Current | None] = ContextVar("watchkeeper_run", default=None)


def remaining() -> float:
    """Return the seconds until the present run's deadline: at least 0.0, `math.inf` outside a run.

    Works in async tools, in sync tools on their own threads, in models and in graph nodes. Inside
    a program that only watches its agents there is no deadline: `math.inf`. Never raises.
    """
    run = current.get()
    return math.inf if run is None else max(0.0, run.deadline - run.clock.monotonic())


# Set during a tool call, on its own thread too.
tool_call: ContextVar[str | None] = ContextVar("watchkeeper_tool_call", default=None)


def tool_call_key() -> str | None:
    """Return the key of the present tool call, for systems that must not act twice; else None.

    A background run may call a tool twice: its process may die after the call and before the step
    is stored. Both calls have the same key if the model repeats the call. So do the calls of runs
    with the same `Idempotency-Key`. Each call of a turn has a key of its own, equal calls too. If
    the process dies between the ends of two parallel calls, the one that is repeated alone has the
    key that it had. Equal calls share a key only if code, and not a model, wrote their message and
    gave them one id. The key is an opaque text; its form may change. It is None outside a tool.
    Never raises.
    """
    return tool_call.get()
