"""Drills of the alerts on how runs end."""

from collections.abc import Iterator

from tests.drills.drill import drill
from tests.drills.scene import Scene

BURN = "AgentErrorBudgetBurn"


@drill(
    BURN, "an agent raises in every third run", agent="orders", long="1h", severity="critical",
    companions=["AgentNoSuccess"],
)  # fmt: skip
def error_budget_burn(scene: Scene) -> Iterator[None]:
    scene.asking("fine", every_s=0.2)
    scene.asking("fail", every_s=0.4)
    yield
    scene.stop_asking()
    scene.asking("fine", every_s=0.05, at_once=2)


@drill(
    "AgentIterationLimitHits", "a model asks for its tool again and again in one run of twelve",
    agent="orders", severity="warning", companions=[BURN, "AgentIterationsNearLimit"],
)  # fmt: skip
def iteration_limit_hits(scene: Scene) -> Iterator[None]:
    scene.asking_one_in(12, "loop", every_s=0.05, at_once=2)
    yield
    scene.stop_asking()
    scene.asking("fine", every_s=0.05)


@drill("AgentIterationsNearLimit", "one run in six needs nine of ten iterations", agent="orders")
def iterations_near_limit(scene: Scene) -> Iterator[None]:
    scene.asking("fine", every_s=0.1)
    scene.asking("nine", every_s=0.5)
    yield
    scene.stop_asking()
    scene.asking("fine", every_s=0.1)


@drill(
    "AgentRunTimeouts", "a tool hangs in one run of twenty", agent="orders", phase="tool",
    severity="warning",
)  # fmt: skip
def run_timeouts(scene: Scene) -> Iterator[None]:
    scene.throw("hang")
    scene.asking_one_in(20, "hang", every_s=0.05, at_once=3, timeout=1.0)
    yield
    scene.release("hang")


@drill(
    "AgentRunStuck", "a service that forgets its deadlines has a hanging tool",
    agents=["orders=forgetful"], variables={"WATCHKEEPER_MAX_TIMEOUT_S": "2"},
    agent="orders", instance="INSTANCE", severity="critical",
)  # fmt: skip
def run_stuck(scene: Scene) -> Iterator[None]:
    scene.throw("forget-deadlines")
    scene.throw("hang")
    scene.asking("hang", every_s=60)
    yield
    scene.release("hang")


@drill(
    "AgentNoSuccess", "an agent raises in every run", agent="orders", severity="critical",
    companions=[BURN],
)  # fmt: skip
def no_success(scene: Scene) -> Iterator[None]:
    scene.asking("fail", every_s=0.3)
    yield
    scene.stop_asking()
    scene.asking("fine", every_s=0.05)


@drill(
    "AgentQueueBacklog", "six callers share two places", agent="orders", instance="INSTANCE",
    variables={"WATCHKEEPER_MAX_RUNNING_RUNS": "2", "WATCHKEEPER_TIMEOUT_S": "4"},
    companions=["AgentSaturated"],
)  # fmt: skip
def queue_backlog(scene: Scene) -> Iterator[None]:
    scene.throw("hang")
    scene.asking("hang", at_once=6, timeout=60)
    yield
    scene.release("hang")
    scene.stop_asking()


DRILLS = (
    error_budget_burn,
    iteration_limit_hits,
    iterations_near_limit,
    run_timeouts,
    run_stuck,
    no_success,
    queue_backlog,
)
