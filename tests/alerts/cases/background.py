"""Cases of the alerts on background runs and their store."""

from app.telemetry import catalogue as c
from tests.alerts.promtool import INSTANCE, Given, fires, given, silent

_OTHER = "10.0.0.2:8000"


def _age(values: str, instance: str = INSTANCE, state: str = "queued") -> Given:
    return given(c.TASK_OLDEST_AGE, values, instance=instance, agent="orders", state=state)


_RESERVE = given(c.STORE_RESERVE, "100000000x40")

CASES = (
    fires(
        "AgentTaskBacklog",
        "a background run waits, and both replicas say so",
        _age("0+60x30"),
        _age("0+60x30", _OTHER),
        at="20m",
        labels={"agent": "orders"},
        summary="Background runs of orders wait",
        description="The oldest background run of orders has waited for 20m 0s.",
    ),
    silent(
        "AgentTaskBacklog",
        "one waits for ten minutes; one has been running for an hour",
        _age("600x40"),
        _age("3600x40", state="running"),
        at="30m",
    ),
    fires(
        "AgentTaskRecoveries",
        "two replicas each take two over",
        given(c.TASK_RECOVERED, "0x10 1 2x20", agent="orders"),
        given(c.TASK_RECOVERED, "0x10 1 2x20", instance=_OTHER, agent="orders"),
        at="31m",
        labels={"agent": "orders"},
        summary="Background runs of orders are taken over from dead processes",
        description="4 background runs of orders were taken over from processes that died in the "
        "last 30m.",
    ),
    silent(
        "AgentTaskRecoveries",
        "two are taken over, as after a deploy",
        given(c.TASK_RECOVERED, "0x10 1 2x20", agent="orders"),
        at="31m",
    ),
    fires(
        "AgentTasksUnservable",
        "two runs wait for an agent that is not served, and both replicas say so",
        given(c.TASKS_UNSERVABLE, "2x40"),
        given(c.TASKS_UNSERVABLE, "2x40", instance=_OTHER),
        at="15m",
        labels={},
        summary="Background runs of watchkeeper wait for an agent that is not served",
        description="2 background runs wait for an agent that no process of watchkeeper serves. "
        "They wait until one does.",
    ),
    silent(
        "AgentTasksUnservable",
        "they wait for five minutes, as while a deploy rolls",
        given(c.TASKS_UNSERVABLE, "0x5 2x5 0x30"),
        at="15m",
    ),
    fires(
        "AgentStoreDiskLow",
        "less than two reserves are left",
        given(c.STORE_FREE, "150000000x40"),
        _RESERVE,
        at="10m",
        labels={"instance": INSTANCE},
        summary="The disk of the store of 10.0.0.1:8000 is nearly full",
        description="143.1MiB are left on the disk of the store of 10.0.0.1:8000. Below its "
        "reserve, new background runs are refused.",
    ),
    silent(
        "AgentStoreDiskLow",
        "two reserves are left",
        given(c.STORE_FREE, "200000000x40"),
        _RESERVE,
        at="10m",
    ),
    fires(
        "AgentStoreUnusable",
        "the store does not answer",
        given(c.READY, "0x40", check="store"),
        given(c.READY, "1x40", check="agents"),
        at="10m",
        labels={"instance": INSTANCE},
        summary="10.0.0.1:8000 cannot use its store",
        description="For 5m the store of 10.0.0.1:8000 has not answered, or has had no room. "
        "Background runs are refused; other runs go on.",
    ),
    silent(
        "AgentStoreUnusable",
        "the store is there; the service is full",
        given(c.READY, "1x40", check="store"),
        given(c.READY, "0x40", check="capacity"),
        at="10m",
    ),
    fires(
        "AgentJournalStuck",
        "one replica cannot write what a run has added",
        given(c.JOURNAL_AGE, "0x5 0+60x30"),
        given(c.JOURNAL_AGE, "0x40", instance=_OTHER),
        at="15m",
        labels={"instance": INSTANCE},
        summary="The store does not take what a background run of 10.0.0.1:8000 writes",
        description="The oldest entry of a background run of 10.0.0.1:8000 has waited for 9m 0s to "
        "be written. Its run calls no tool and does not end before that.",
    ),
    silent(
        "AgentJournalStuck",
        "an entry waits for a minute each time; one waits for four, while the store restarts",
        given(c.JOURNAL_AGE, "60x40"),
        given(c.JOURNAL_AGE, "0x5 0+60x5 0x30", instance=_OTHER),
        at="12m",
    ),
)
