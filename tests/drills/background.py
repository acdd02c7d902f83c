"""Drills of the alerts on background runs and the store that keeps them."""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing

from tests.drills.drill import drill
from tests.drills.scene import Scene

# While a process starts again.
_GONE = ("AgentServiceDown", "AgentServiceAbsent")
_GIGABYTE = 1_000_000_000


@drill(
    "AgentTaskBacklog",
    "the only background run there may be hangs",
    agent="orders",
    severity="warning",
    variables={"WATCHKEEPER_MAX_BACKGROUND_RUNS": "1"},
)
def task_backlog(scene: Scene) -> Iterator[None]:
    scene.throw("hang")
    scene.submit("hang", times=2)
    yield
    scene.release("hang")


@drill(
    "AgentTaskRecoveries",
    "a process is killed at work on four background runs",
    agent="orders",
    severity="warning",
    companions=_GONE,
)
def task_recoveries(scene: Scene) -> Iterator[None]:
    scene.throw("hang")
    scene.submit("hang", times=4)
    scene.monitoring.prometheus.until("agent_tasks_running == 4")
    scene.kill()
    scene.start()
    yield
    scene.release("hang")


@drill(
    "AgentTasksUnservable",
    "an agent is dropped while a background run of it waits",
    severity="warning",
    agents=["orders", "former=orders"],
    # A process that requeues a run of an agent it does not serve reports it as `_other`.
    companions=[*_GONE, "AgentLabelOverflow"],
)
def tasks_unservable(scene: Scene) -> Iterator[None]:
    scene.throw("hang")
    scene.submit("hang", agent="former")
    scene.monitoring.prometheus.until('agent_tasks_running{agent="former"} == 1')
    scene.kill()
    scene.start("orders")
    yield
    scene.release("hang")
    scene.kill()
    scene.start()


def _free() -> int:
    return shutil.disk_usage(tempfile.gettempdir()).free


def _two_reserves() -> Mapping[str, str]:
    """A reserve of which there is twice as much, and a gigabyte more."""
    return {"WATCHKEEPER_STORE_RESERVE_BYTES": str((_free() - _GIGABYTE) // 2)}


def _one_reserve() -> Mapping[str, str]:
    """A reserve, and a gigabyte more."""
    return {"WATCHKEEPER_STORE_RESERVE_BYTES": str(_free() - _GIGABYTE)}


def _fill(scene: Scene) -> Iterator[None]:
    """Let somebody else write two gigabytes to the disk of the store; then delete them."""
    stranger = scene.store / "somebody-elses"
    with stranger.open("wb") as file:
        part = bytes(_GIGABYTE // 100)
        for _ in range(200):
            file.write(part)
    yield
    stranger.unlink()


store_disk_low = drill(
    "AgentStoreDiskLow",
    "the disk of the store fills up to less than two reserves",
    instance="INSTANCE",
    severity="warning",
    variables=_two_reserves,
)(_fill)

store_unusable = drill(
    "AgentStoreUnusable",
    "the disk of the store fills up to less than its reserve",
    instance="INSTANCE",
    severity="critical",
    variables=_one_reserve,
    companions=["AgentStoreDiskLow"],
)(_fill)


@drill(
    "AgentJournalStuck",
    "a trigger of another program fails for each row of a run's log",
    instance="INSTANCE",
    severity="critical",
)
def journal_stuck(scene: Scene) -> Iterator[None]:
    # The store takes everything else, so `AgentStoreUnusable` does not fire.
    _change(
        scene,
        "create trigger somebody_elses before insert on streams "
        "begin insert into no_such_table values (new.workflow_uuid); end",
    )
    scene.submit("fine")
    yield
    _change(scene, "drop trigger somebody_elses")


def _change(scene: Scene, statement: str) -> None:
    """Let another program change the schema of the store."""
    with closing(sqlite3.connect(scene.store / "store.sqlite", timeout=30)) as file, file:
        file.execute(statement)


DRILLS = (
    task_backlog,
    task_recoveries,
    tasks_unservable,
    store_disk_low,
    store_unusable,
    journal_stuck,
)
