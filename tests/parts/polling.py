"""Polls servers until a condition holds, with a timeout for slow machines."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from tests.chaos.fleet import call

T = TypeVar("T")

WITHIN_S = 60.0


def until(holds: Callable[[], T], what: str) -> T:
    """The value of `holds` once it is true; the assertion names `what` if it never is."""
    end = time.monotonic() + WITHIN_S
    while time.monotonic() < end:
        if found := holds():
            return found
        time.sleep(0.02)
    raise AssertionError(what)


def ended(port: int, task_id: str) -> dict[str, Any]:
    """A server's view of a background run once it has ended."""

    def look() -> dict[str, Any] | None:
        task = call(port, "GET", f"/agent/async/{task_id}?wait=1")[1] or {}
        return task if task.get("status") not in (None, "pending", "running") else None

    task = until(look, f"{task_id} has not ended")
    assert task is not None
    return task


def submitted(port: int, question: str, agent: str = "graph", **body: Any) -> str:
    """A background run that was accepted; its id."""
    payload = {"question": question, **body}
    status, accepted = call(port, "POST", f"/agents/{agent}/async", payload, timeout_s=30)
    assert status == 202, accepted
    task_id: str = accepted["task_id"]
    return task_id
