"""Emits every fact to every sink. A sink that fails is counted and never breaks a run."""

from collections.abc import Callable

from app.runs.events import Emit, Event


class Fanout:
    """Call it with a fact. It calls `on_error` with the name of a sink that raised."""

    def __init__(self, on_error: Callable[[str], None]) -> None:
        self._on_error = on_error
        self._sinks: tuple[tuple[str, Emit], ...] = ()

    def add(self, name: str, sink: Emit) -> None:
        """Emit to this sink too, after those that were added before it."""
        self._sinks = (*self._sinks, (name, sink))

    def __call__(self, fact: Event) -> None:
        """Emit a fact to every sink."""
        for name, sink in self._sinks:
            try:
                sink(fact)
            except Exception:  # noqa: BLE001 - telemetry must not break what it observes
                self._on_error(name)
