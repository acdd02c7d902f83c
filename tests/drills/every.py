"""Every drill, and why some alerts have none."""

from tests.drills import background, models, runs, service, telemetry, tools
from tests.drills.drill import Drill

DRILLS: dict[str, Drill] = {
    drill.alert: drill
    for module in (service, runs, models, tools, background, telemetry)
    for drill in module.DRILLS
}

# An alert without a drill has a reason. promtool still tests it from both sides.
WITHOUT: dict[str, str] = {
    "AgentWatchdog": "it always fires: every drill begins when it is active",
}
