"""Facts are timed by another clock than spans."""

from types import SimpleNamespace

import pytest
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider

from app.runs.events import RunQueued
from app.runs.model import Mode
from app.telemetry.traces import Traces

AHEAD_S = 1_000.0


class Clocks:
    """Both clocks, for a thread that pauses between the first two readings."""

    def __init__(self) -> None:
        self.now = 10.0
        self.held_s = 0.2

    def time(self) -> float:
        """The wall clock."""
        read = self.now + AHEAD_S
        self.now, self.held_s = self.now + self.held_s, 0.0
        return read

    def monotonic(self) -> float:
        """The other one."""
        return self.now


class Begun(SpanProcessor):
    """When spans began."""

    def __init__(self) -> None:
        self.at_s: list[float] = []

    def on_start(self, span: Span, parent_context: object = None) -> None:
        """Take one in."""
        assert span.start_time is not None
        self.at_s.append(span.start_time / 1e9)


def test_span_starts_at_the_time_of_its_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A span starts at the time of its fact, even if a busy machine held its thread meanwhile."""
    clocks, started_spans, provider = Clocks(), Begun(), TracerProvider()
    provider.add_span_processor(started_spans)
    fake = SimpleNamespace(time=clocks.time, monotonic=clocks.monotonic)
    monkeypatch.setattr("app.telemetry.traces.time", fake)
    Traces(provider.get_tracer("test"))(RunQueued(run_id="r", agent="a", at=10.0, mode=Mode.SYNC))
    assert started_spans.at_s == [pytest.approx(10.0 + AHEAD_S, abs=0.001)]
