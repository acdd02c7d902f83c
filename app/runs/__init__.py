"""The core: admits runs, executes them, ends them by their deadline and records their progress.

Its only library is tenacity, which retries calls. A tool may call `remaining()` for the seconds
until its run's deadline, and `tool_call_key()` for a key under which another system can detect a
repeated call.
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
