"""Every alert has a drill or a reason why not, and the page has the results of a full run."""

import re

import pytest

from dashboards import rules
from dashboards.rules.promql import OF_PROMETHEUS
from dashboards.rules.values import Values, milliseconds, scaled
from tests.command import ROOT
from tests.drills import monitoring
from tests.drills.__main__ import main, without
from tests.drills.every import DRILLS, WITHOUT

NAMES = {alert.name for alert in rules.alerts(Values.load())}
TOLD = (ROOT / "docs" / "drills.md").read_text()


def test_every_alert_has_a_drill_or_a_reason() -> None:
    """No alert is missing, and none has both a drill and a reason."""
    assert set(DRILLS) | set(WITHOUT) == NAMES
    assert not set(DRILLS) & set(WITHOUT)


def test_companions_are_alerts() -> None:
    """A drill allows only existing alerts, and never its own."""
    for drill in DRILLS.values():
        assert drill.companions <= NAMES - {drill.alert}


def test_every_burn_is_drilled_or_excused() -> None:
    """The burn rates of the error budget that no drill can wait for are named."""
    assert "slow" in TOLD


def test_page_has_every_drill() -> None:
    """The page has a row for each drill, each as expected, and each reason."""
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", TOLD, re.M))
    assert rows == dict.fromkeys(DRILLS, "as it should")
    assert without() in TOLD


def test_shortest_window_has_enough_scrapes() -> None:
    """At the speed of the drills the shortest window still has at least four scrapes."""
    windows = re.findall(
        r"\[(\w+)\]", " ".join(a.expr for a in rules.alerts(Values.load(speed=60)))
    )
    interval = milliseconds(scaled(monitoring.SCRAPE_INTERVAL, monitoring.SPEED))
    assert min(map(milliseconds, windows)) >= 4 * interval
    assert OF_PROMETHEUS


@pytest.mark.parametrize("name", ["Watchdog", "Wachtdog"])
def test_unknown_drill_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown drill is refused with the reason."""
    monkeypatch.setattr("sys.argv", ["drills", name])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert f"Agent{name}" in capsys.readouterr().err
