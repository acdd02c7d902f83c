"""Drills of the alerts on the service as a process."""

from collections.abc import Iterator

from tests.drills.drill import drill
from tests.drills.scene import Scene


@drill(
    "AgentServiceDown", "the process is killed", instance="INSTANCE", severity="critical",
    companions=["AgentServiceAbsent"],
)  # fmt: skip
def service_down(scene: Scene) -> Iterator[None]:
    scene.kill()
    yield
    scene.start()


@drill("AgentServiceAbsent", "Prometheus loses its only target", severity="critical")
def service_absent(scene: Scene) -> Iterator[None]:
    scene.monitoring.scrape()
    yield
    scene.monitoring.scrape(scene.instance)


@drill(
    "AgentSaturated", "two long runs take both places", instance="INSTANCE",
    variables={"WATCHKEEPER_MAX_RUNNING_RUNS": "2"},
)  # fmt: skip
def saturated(scene: Scene) -> Iterator[None]:
    scene.throw("hang")
    scene.asking("hang", at_once=2, timeout=120)
    yield
    scene.stop_asking()
    scene.release("hang")


@drill(
    "AgentRequestsShed", "the only place is taken, and nobody may wait", instance="INSTANCE",
    variables={"WATCHKEEPER_MAX_RUNNING_RUNS": "1", "WATCHKEEPER_MAX_QUEUED_RUNS": "0"},
    companions=["AgentErrorBudgetBurn", "AgentSaturated"],
)  # fmt: skip
def requests_shed(scene: Scene) -> Iterator[None]:
    scene.ask("fine", times=20)
    scene.throw("hang")
    scene.asking("hang", timeout=120)
    scene.asking("fine", every_s=0.5)
    yield
    scene.release("hang")
    scene.stop_asking()
    scene.asking("fine", every_s=0.05)


@drill("AgentEventLoopBlocked", "an async tool sleeps with time.sleep", instance="INSTANCE")
def event_loop_blocked(scene: Scene) -> Iterator[None]:
    scene.asking("block", every_s=1.5)
    yield
    scene.stop_asking()


_MANY = [f"agent-{number:03}=orders" for number in range(170)]


@drill(
    "AgentScrapeTooHeavy",
    "a process serves far too many agents",
    agents=_MANY,
    instance="INSTANCE",
    severity="info",
    scrape_interval="2m",  # such a scrape takes longer than half a second
    companions=["AgentServiceDown", "AgentServiceAbsent"],  # while it starts with fewer agents
)
def scrape_too_heavy(scene: Scene) -> Iterator[None]:
    yield
    scene.kill()
    scene.start("orders")


DRILLS = (
    service_down,
    service_absent,
    saturated,
    requests_shed,
    event_loop_blocked,
    scrape_too_heavy,
)
