"""Alertmanager notifies the right receivers, and each once."""

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


def test_configuration_is_valid() -> None:
    """Alertmanager's own check finds no fault."""
    ended = amtool("check-config", str(CONFIGURATION))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "4 inhibit rules" in ended.stdout


@pytest.mark.parametrize("alert", rules.alerts(Values.load()), ids=lambda alert: alert.name)
def test_severity_selects_the_receiver(alert: Alert) -> None:
    """Critical alerts page, warnings and infos are tickets, the watchdog has its own receiver."""
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


def test_wrong_route_is_detected(tmp_path: Path) -> None:
    """If critical alerts were tickets, the check above would fail."""
    wrong = tmp_path / "alertmanager.yml"
    wrong.write_text(CONFIGURATION.read_text().replace('severity = "critical"', 'severity = "x"'))
    ended = amtool(
        "config", "routes", "test", f"--config.file={wrong}", "--verify.receivers=page",
        "alertname=AgentServiceDown", "severity=critical",
    )  # fmt: skip
    assert ended.returncode != 0


def test_receivers_are_examples() -> None:
    """Without configured receivers nothing leaves the machine, and no secret is in the file."""
    text = CONFIGURATION.read_text()
    urls = re.findall(r"url: '([^']*)'", text)
    assert len(urls) == 3
    assert all(url.startswith("http://127.0.0.1:") for url in urls)
    assert not re.search(r"password|token|api_key|secret", text)
