"""Drills of the alerts on the telemetry itself."""

from collections.abc import Iterator

from tests.drills.drill import drill
from tests.drills.scene import Scene

# A batch is sent soon, and given up soon.
_IMPATIENT = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1", "OTEL_BSP_SCHEDULE_DELAY": "300"}


@drill(
    "AgentTelemetryDropped",
    "the collector takes connections and never answers",
    collector=True,
    variables=_IMPATIENT,
    instance="INSTANCE",
    reason="export_failed",
    severity="warning",
)
def telemetry_dropped(scene: Scene) -> Iterator[None]:
    assert scene.collector is not None
    scene.collector.hangs.set()
    scene.asking("fine", every_s=0.2)
    yield
    scene.collector.hangs.clear()


@drill(
    "AgentTelemetryErrors", "the metrics raise for every fact", instance="INSTANCE",
    sink="metrics", severity="warning", agents=["orders=uncounted"],
)  # fmt: skip
def telemetry_errors(scene: Scene) -> Iterator[None]:
    scene.throw("break-metrics")
    scene.asking("fine", every_s=0.3)
    yield
    scene.release("break-metrics")


@drill(
    "AgentLabelOverflow", "every call has a model of another name", label="model",
    severity="info", companions=["AgentUnpricedCalls"],
)  # fmt: skip
def label_overflow(scene: Scene) -> Iterator[None]:
    scene.throw("new-names")
    scene.asking("fine", every_s=0.1)
    yield
    scene.release("new-names")
    scene.stop_asking()


DRILLS = (telemetry_dropped, telemetry_errors, label_overflow)
