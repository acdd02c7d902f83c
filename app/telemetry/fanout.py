"""Every fact to every sink; a sink that fails is counted and never breaks a run."""

from collections import Counter

from app.runs.events import Emit, Event


class Fanout:
    """Call it with a fact. `errors` counts, by sink, what sinks raised."""

    def __init__(self, **sinks: Emit) -> None:
        self.errors: Counter[str] = Counter()
        self._sinks = tuple(sinks.items())

    def __call__(self, fact: Event) -> None:
        """Tell every sink."""
        for name, sink in self._sinks:
            try:
                sink(fact)
            except Exception:  # noqa: BLE001 - watching must not break what is watched
                self.errors[name] += 1
