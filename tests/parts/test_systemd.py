"""systemd understands the unit for one machine and confines it."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from app import settings as configuration
from tests.parts.chart import ROOT

UNIT = ROOT / "deploy/systemd/watchkeeper.service"
# Of 100. What is left is the network that it serves on, and files of the machine that it can read.
_MOST_EXPOSED = 15


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    program = shutil.which("systemd-analyze")
    if program is None:
        raise RuntimeError("systemd-analyze is missing: install Debian's systemd.")
    return subprocess.run([program, *arguments], capture_output=True, text=True)


def values(name: str) -> Sequence[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.M)


def test_unit_is_valid(tmp_path: Path) -> None:
    """No line of the unit is unknown or wrong; the program need not be installed for that."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/watchkeeper/bin/watchkeeper", "/bin/true"))
    completed = analyze("verify", "--man=no", "--recursive-errors=no", str(unit))
    assert (completed.returncode, completed.stderr) == (0, "")


def test_unit_is_confined() -> None:
    """By systemd's own measure the service can reach hardly anything."""
    completed = analyze(
        *("security", "--no-pager", "--offline=true", f"--threshold={_MOST_EXPOSED}", str(UNIT))
    )
    assert completed.returncode == 0, completed.stdout


def test_stop_lets_runs_finish() -> None:
    """The service is killed only after its longest run could have ended."""
    variables = dict(word.split("=", 1) for line in values("Environment") for word in line.split())
    assert configuration.unknown_variables(variables) == []
    drain_s = float(variables["WATCHKEEPER_DRAIN_S"])
    assert drain_s >= float(variables["WATCHKEEPER_MAX_TIMEOUT_S"])
    [stop_s] = values("TimeoutStopSec")
    assert float(stop_s) >= drain_s + 10
