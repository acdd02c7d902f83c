"""The core: what a run is, who may start one, when it must end and what is known about it.

Its only library is tenacity, which repeats calls. A tool may ask `remaining()` how many seconds its
run has left, and `idempotency_key()` how to name its call to systems that must not do it twice.
"""

from app.runs.deadline import idempotency_key, remaining

__all__ = ["idempotency_key", "remaining"]
