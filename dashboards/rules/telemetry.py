"""Alerts on the telemetry itself: its losses make every other signal less reliable."""

from app.telemetry.catalogue import (
    DROP,
    LABEL,
    LABEL_OVERFLOW,
    LOGS_DROPPED,
    SINK,
    SPANS_DROPPED,
    TELEMETRY_ERRORS,
)
from dashboards.rules.alert import Alert, Board, Severity
from dashboards.rules.promql import INSTANCE, increase
from dashboards.rules.values import Knobs


def telemetry_dropped(knobs: Knobs) -> Alert:
    """Spans or log lines are lost."""
    window, most = knobs.span("window"), f"{knobs.number('lost'):g}"
    spans = increase(SPANS_DROPPED, window, INSTANCE, DROP)
    lines = increase(LOGS_DROPPED, window, INSTANCE)
    return Alert(
        name=knobs.name,
        expr=f"{spans} > {most}\nor\n{lines} > {most}",
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.RUNTIME,
        summary="{{ $labels.instance }} loses spans or log lines",
        description=(
            '{{ $value | printf "%.0f" }} '
            "{{ if $labels.reason }}spans ({{ $labels.reason }}){{ else }}log lines{{ end }} of "
            f"{{{{ $labels.instance }}}} were lost in the last {window}."
        ),
    )


def telemetry_errors(knobs: Knobs) -> Alert:
    """A part of the telemetry raises. Runs go on, and its signals are missing."""
    window = knobs.span("window")
    return Alert(
        name=knobs.name,
        expr=f"{increase(TELEMETRY_ERRORS, window, INSTANCE, SINK)} > {knobs.number('errors'):g}",
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.RUNTIME,
        summary="The {{ $labels.sink }} of {{ $labels.instance }} raise errors",
        description=(
            '{{ $value | printf "%.0f" }} faults in the {{ $labels.sink }} of '
            f"{{{{ $labels.instance }}}} in the last {window}: their output is incomplete."
        ),
    )


def label_overflow(knobs: Knobs) -> Alert:
    """A label has more values than its bound. The rest is counted as `_other`."""
    window = knobs.span("window")
    overflow = increase(LABEL_OVERFLOW, window, LABEL)
    return Alert(
        name=knobs.name,
        expr=f"{overflow} > {knobs.number('values'):g}",
        lasts=knobs.span("for"),
        severity=Severity.INFO,
        board=Board.RUNTIME,
        summary="Label {{ $labels.label }} has too many values",
        description=(
            '{{ $value | printf "%.0f" }} times in the last '
            f"{window} a value of the label {{{{ $labels.label }}}} was counted as _other."
        ),
    )


ALERTS = {
    "AgentTelemetryDropped": telemetry_dropped,
    "AgentTelemetryErrors": telemetry_errors,
    "AgentLabelOverflow": label_overflow,
}
