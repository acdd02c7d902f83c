"""Alertmanager tells the right people; who is told twice is told once."""

import re
import subprocess
from pathlib import Path

import pytest

from dashboards import rules
from dashboards.rules.alert import Alert
from dashboards.rules.values import Values
from tests.alerts.promtool import program
from tests.command import ROOT

pytestmark = pytest.mark.waits

CONFIGURATION = ROOT / "dashboards" / "generated" / "alertmanager" / "alertmanager.yml"
RECEIVERS = {"critical": "page", "warning": "ticket", "info": "ticket", "none": "deadman"}


def amtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    command = [program("amtool"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


def test_the_configuration_is_taken() -> None:
    """Alertmanager's own check finds no fault."""
    ended = amtool("check-config", str(CONFIGURATION))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 inhibit rules" in ended.stdout


@pytest.mark.parametrize("alert", rules.alerts(Values.load()), ids=lambda alert: alert.name)
def test_an_alert_goes_to_whom_its_severity_says(alert: Alert) -> None:
    """Critical pages, warnings and infos are tickets, the watchdog beats for its dead man."""
    ended = amtool(
        "config",
        "routes",
        "test",
        f"--config.file={CONFIGURATION}",
        f"--verify.receivers={RECEIVERS[alert.severity]}",
        f"alertname={alert.name}",
        f"severity={alert.severity}",
        "job=watchkeeper",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_wrong_route_is_noticed(tmp_path: Path) -> None:
    """If critical alerts were tickets, the check above would fail."""
    wrong = tmp_path / "alertmanager.yml"
    wrong.write_text(CONFIGURATION.read_text().replace('severity = "critical"', 'severity = "x"'))
    ended = amtool(
        "config", "routes", "test", f"--config.file={wrong}", "--verify.receivers=page",
        "alertname=AgentServiceDown", "severity=critical",
    )  # fmt: skip
    assert ended.returncode != 0


def test_receivers_are_examples() -> None:
    """Nothing leaves the machine until somebody says where to, and nothing secret is kept here."""
    text = CONFIGURATION.read_text()
    urls = re.findall(r"url: '([^']*)'", text)
    assert len(urls) == 3
    assert all(url.startswith("http://127.0.0.1:") for url in urls)
    assert not re.search(r"password|token|api_key|secret", text)
