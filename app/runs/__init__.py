"""The core: admits runs, executes them, ends them by their deadline and records their progress.

Its only library is tenacity, which retries calls. A tool may call `remaining()` for the seconds
until its run's deadline, and `idempotency_key()` for a key under which another system can detect a
repeated call.
"""

from app.runs.deadline import idempotency_key, remaining

__all__ = ["idempotency_key", "remaining"]
