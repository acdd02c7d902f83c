"""A drill as a value: the alert, its fault and how it is healed; and the running of one."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests import otlp
from tests.drills.monitoring import SCRAPE_INTERVAL, Active, start_monitoring
from tests.drills.scene import Scene, set_up
from tests.upstreams import llmock

WATCHDOG = "AgentWatchdog"
_FIRES_WITHIN_S, _CLEARS_WITHIN_S = 120.0, 180.0
_LOOKS_EVERY_S = 0.2

# Causes the fault up to its `yield`, which is left when the alert is active; the rest heals.
Script = Callable[[Scene], Iterator[None]]


# What the service is started with; a function is asked when the drill begins.
Variables = Mapping[str, str] | Callable[[], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Drill:
    """`companions` are alerts that rightly fire for the same fault."""

    alert: str
    fault: str
    script: Script
    labels: Mapping[str, str]
    companions: frozenset[str]
    agents: Sequence[str]
    variables: Variables
    upstream: bool
    collector: bool
    scrape_interval: str


@dataclass(slots=True)
class Result:
    """What a drill showed. `faults` is empty when all was well."""

    drill: Drill
    labels: Mapping[str, str] = field(default_factory=dict)
    suppressed: bool = False
    fired_s: float | None = None
    cleared_s: float | None = None
    beside: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)


def drill(
    alert: str,
    fault: str,
    *,
    companions: Sequence[str] = (),
    agents: Sequence[str] = ("orders",),
    variables: Variables | None = None,
    upstream: bool = False,
    collector: bool = False,
    scrape_interval: str = SCRAPE_INTERVAL,
    **labels: str,
) -> Callable[[Script], Drill]:
    """Make a script a drill. A label whose value is `INSTANCE` is that of the service."""

    def made(script: Script) -> Drill:
        return Drill(
            alert,
            fault,
            script,
            labels,
            frozenset(companions),
            agents,
            variables or {},
            upstream,
            collector,
            scrape_interval,
        )

    return made


class Failed(Exception):
    """The drill failed; the message has what it showed."""


def run(
    drill: Drill,
    here: Path,
    say: Callable[[str], None],
    fires_within_s: float = _FIRES_WITHIN_S,
) -> Result:
    """Run one drill in an empty directory."""
    result = Result(drill)
    with ExitStack() as stack:
        given = drill.variables
        variables = dict(given() if callable(given) else given)
        upstream = stack.enter_context(llmock()) if drill.upstream else ""
        if upstream:
            variables |= {"OPENAI_BASE_URL": upstream, "OPENAI_API_KEY": "not-a-secret"}
        collector = stack.enter_context(otlp.receiver()) if drill.collector else None
        if collector:
            variables |= {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url}
        monitoring = stack.enter_context(start_monitoring(here, drill.scrape_interval))
        scene = stack.enter_context(set_up(here, monitoring, drill.agents, variables))
        scene.upstream, scene.collector = upstream, collector
        script = drill.script(scene)
        say(f"causes: {drill.fault}")
        try:
            began = time.monotonic()
            next(script)
            _wait(scene, result, fires_within_s, fires=True)
            result.fired_s = time.monotonic() - began
            say(f"active after {result.fired_s:.1f} s: {dict(result.labels)}")
            began = time.monotonic()
            next(script, None)
            _wait(scene, result, _CLEARS_WITHIN_S, fires=False)
            result.cleared_s = time.monotonic() - began
            say(f"resolved {result.cleared_s:.1f} s after it was healed")
        except Failed as failed:
            result.faults.append(str(failed))
    strangers = result.beside - drill.companions
    if strangers:
        result.faults.append(f"{', '.join(sorted(strangers))} fired too")
    for fault in result.faults:
        say(f"FAILED: {fault}")
    return result


def _wait(scene: Scene, result: Result, timeout_s: float, *, fires: bool) -> None:
    """Look at Alertmanager until the alert is active, or is no more; note what else is."""
    end = time.monotonic() + timeout_s
    expected = {
        name: scene.instance if value == "INSTANCE" else value
        for name, value in result.drill.labels.items()
    }
    while True:
        active = scene.monitoring.alertmanager.alerts()
        ours = [alert for alert in active if alert.name == result.drill.alert]
        result.beside |= {alert.name for alert in active} - {WATCHDOG, result.drill.alert}
        for alert in ours:
            _look(alert, expected, result)
        if bool(ours) is fires:
            return
        if time.monotonic() > end:
            state = "active" if fires else "resolved"
            raise Failed(f"was not {state} within {timeout_s:g} s")
        time.sleep(_LOOKS_EVERY_S)


def _look(alert: Active, expected: Mapping[str, str], result: Result) -> None:
    redundant = {"alertname", "job"}
    if not expected.items() <= alert.labels.items():
        raise Failed(f"fired with {alert.labels} and not with {dict(expected)}")
    result.labels = {name: value for name, value in alert.labels.items() if name not in redundant}
    result.suppressed = result.suppressed or alert.suppressed
