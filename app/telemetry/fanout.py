"""Every fact to every sink; a sink that fails is counted and never breaks a run."""

from collections.abc import Callable

from app.runs.events import Emit, Event


class Fanout:
    """Call it with a fact. `on_error` is told the name of a sink that raised."""

    def __init__(self, on_error: Callable[[str], None]) -> None:
        self._on_error = on_error
        self._sinks: tuple[tuple[str, Emit], ...] = ()

    def add(self, name: str, sink: Emit) -> None:
        """Tell this sink too, after those that were added before it."""
        self._sinks = (*self._sinks, (name, sink))

    def __call__(self, fact: Event) -> None:
        """Tell every sink."""
        for name, sink in self._sinks:
            try:
                sink(fact)
            except Exception:  # noqa: BLE001 - watching must not break what is watched
                self._on_error(name)
