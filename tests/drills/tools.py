"""Drills of the alerts on tools."""

from collections.abc import Iterator

from tests.drills.drill import drill
from tests.drills.scene import Scene


@drill(
    "AgentToolErrors", "a tool cannot reach its warehouse", agent="orders", tool="query_order",
    severity="warning",
)  # fmt: skip
def tool_errors(scene: Scene) -> Iterator[None]:
    scene.asking("raise", every_s=0.3)
    yield
    scene.stop_asking()
    scene.asking("fine", every_s=0.1)


@drill(
    "AgentToolThreadsAbandoned", "a sync tool hangs in two runs, of two threads",
    instance="INSTANCE", severity="warning", variables={"WATCHKEEPER_TOOL_THREADS": "2"},
    companions=["AgentToolErrors"],
)  # fmt: skip
def tool_threads_abandoned(scene: Scene) -> Iterator[None]:
    scene.asking("fine", every_s=0.05)
    scene.throw("hang")
    scene.ask("audit", times=2, timeout=0.5)
    yield
    scene.release("hang")


@drill(
    "AgentHallucinatedTools", "a model asks for a tool that does not exist", agent="orders",
    reason="unknown_tool", severity="info",
)  # fmt: skip
def hallucinated_tools(scene: Scene) -> Iterator[None]:
    scene.asking("invent", every_s=0.2)
    yield
    scene.stop_asking()
    scene.asking("fine", every_s=0.2)


DRILLS = (tool_errors, tool_threads_abandoned, hallucinated_tools)
