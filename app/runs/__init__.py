"""The core: what a run is, who may start one, when it must end and what is known about it.

It knows no library. A tool may ask `remaining()` how many seconds its run has left, and
`tool_call_key()` how to name its call to systems that must not do it twice.
"""

import warnings

from app.runs.deadline import remaining, tool_call_key

__all__ = ["idempotency_key", "remaining", "tool_call_key"]


def idempotency_key() -> str | None:
    """Return `tool_call_key()`: the old name, which the next version removes."""
    warnings.warn(
        "app.runs.idempotency_key is now watchkeeper.tool_call_key; the next version removes it",
        DeprecationWarning,
        stacklevel=2,
    )
    return tool_call_key()
