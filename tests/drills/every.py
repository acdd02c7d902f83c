"""Every drill, and why some alerts have none."""

from tests.drills import models, runs, service, telemetry, tools
from tests.drills.drill import Drill

DRILLS: dict[str, Drill] = {
    drill.alert: drill
    for module in (service, runs, models, tools, telemetry)
    for drill in module.DRILLS
}

_LATER = "background runs are drilled with the store that keeps them"

# An alert with no drill says why. promtool holds it from both sides all the same.
WITHOUT: dict[str, str] = {
    "AgentWatchdog": "it always fires: every drill begins when it is active",
    "AgentTaskBacklog": _LATER,
    "AgentTaskRecoveries": _LATER,
    "AgentTasksUnservable": _LATER,
    "AgentStoreDiskLow": _LATER,
    "AgentStoreUnusable": _LATER,
}
