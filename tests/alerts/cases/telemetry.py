"""Cases of the alerts on the telemetry itself."""

from app.telemetry import catalogue as c
from tests.alerts.promtool import INSTANCE, fires, given, silent

CASES = (
    fires(
        "AgentTelemetryDropped",
        "spans are not delivered",
        given(c.SPANS_DROPPED, "0+2x40", reason="export_failed"),
        given(c.SPANS_DROPPED, "0x40", reason="queue_full"),
        given(c.LOGS_DROPPED, "7x40"),
        at="20m",
        labels={"instance": INSTANCE, "reason": "export_failed"},
        summary="10.0.0.1:8000 loses spans or log lines",
        description="30 spans (export_failed) of 10.0.0.1:8000 were lost in the last 15m.",
    ),
    fires(
        "AgentTelemetryDropped",
        "nobody reads the log",
        given(c.SPANS_DROPPED, "9x40", reason="export_failed"),
        given(c.LOGS_DROPPED, "0+1x40"),
        at="20m",
        labels={"instance": INSTANCE},
        summary="10.0.0.1:8000 loses spans or log lines",
        description="15 log lines of 10.0.0.1:8000 were lost in the last 15m.",
    ),
    silent(
        "AgentTelemetryDropped",
        "a few were lost an hour ago",
        given(c.SPANS_DROPPED, "0 5x90", reason="queue_full"),
        given(c.LOGS_DROPPED, "0 5x90"),
        at="60m",
    ),
    fires(
        "AgentTelemetryErrors",
        "the traces raise",
        given(c.TELEMETRY_ERRORS, "0+1x40", sink="traces"),
        given(c.TELEMETRY_ERRORS, "0x40", sink="metrics"),
        at="20m",
        labels={"instance": INSTANCE, "sink": "traces"},
        summary="The traces of 10.0.0.1:8000 raise errors",
        description="15 faults in the traces of 10.0.0.1:8000 in the last 15m: their output is "
        "incomplete.",
    ),
    silent(
        "AgentTelemetryErrors",
        "they raised an hour ago",
        given(c.TELEMETRY_ERRORS, "0 5x90", sink="traces"),
        at="60m",
    ),
    fires(
        "AgentLabelOverflow",
        "more tools are asked for than there is room for",
        given(c.LABEL_OVERFLOW, "0+1x90", label="tool"),
        at="65m",
        labels={"label": "tool"},
        summary="Label tool has too many values",
        description="60 times in the last 1h a value of the label tool was counted as _other.",
    ),
    silent(
        "AgentLabelOverflow",
        "it happened two hours ago",
        given(c.LABEL_OVERFLOW, "0 5x150", label="tool"),
        at="120m",
    ),
)
