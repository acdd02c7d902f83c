"""What programs and agents import of Watchkeeper; the service itself is the package `app`.

    from watchkeeper import watch, remaining, tool_call_key, build_agent

Importing this is light. LangChain and the telemetry load when `watch` or `build_agent` is first
used. Each name is the very object that the service uses.
"""

import importlib
from typing import TYPE_CHECKING, Any

try:
    from app.runs import remaining, tool_call_key
except ImportError as failed:
    # A program may have its own `app`, which then hides ours: see docs/adr/0001.
    own = importlib.import_module("app")
    raise ImportError(
        "watchkeeper needs its own package 'app', which another one hides: "
        f"{own.__file__}. Rename that one, and what imports it."
    ) from failed

if TYPE_CHECKING:
    from app.agents.builder import build_agent
    from app.watch import watch

__all__ = ["build_agent", "remaining", "tool_call_key", "watch"]

_LOADED_ON_USE = {"build_agent": "app.agents.builder", "watch": "app.watch"}

if not TYPE_CHECKING:  # a type checker would take every name for one of ours

    def __getattr__(name: str) -> Any:
        """Load what is heavy when it is first used."""
        if name not in _LOADED_ON_USE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(importlib.import_module(_LOADED_ON_USE[name]), name)
        return found


def __dir__() -> list[str]:
    """The names that are there to be used."""
    return __all__
