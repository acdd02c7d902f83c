"""The committed files are what the code builds, and a difference is named."""

import json
import tomllib
from pathlib import Path

import pytest

from dashboards import boards, rules
from dashboards.__main__ import main
from dashboards.rules.values import FILE, Values

CHECK = ["--check"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Another directory for the generated files, with all of them."""
    assert main([], tmp_path) == 0
    return tmp_path


def test_every_file_is_written(directory: Path) -> None:
    """Dashboards and rules are written, and found fresh."""
    written = {str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()}
    assert written == {*boards.files(), *rules.files()}
    assert main(CHECK, directory) == 0


@pytest.mark.parametrize("name", ["grafana/watchkeeper-cost.json", "prometheus/alerts.yml"])
def test_stale_file_is_named(
    directory: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that was edited by hand fails the check, which names it and leaves it."""
    (directory / name).write_text("edited")
    assert main(CHECK, directory) == 1
    assert f"Stale in dashboards/generated: {name}." in capsys.readouterr().err
    assert (directory / name).read_text() == "edited"


def test_leftover_file_is_named(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that nothing builds any more fails the check too, and writing removes it."""
    (directory / "grafana" / "old.json").write_text("{}")
    assert main(CHECK, directory) == 1
    assert "grafana/old.json" in capsys.readouterr().err
    assert main([], directory) == 0
    assert not (directory / "grafana" / "old.json").exists()


def test_values_change_the_dashboards() -> None:
    """Objective, threshold and runbook address come from the values, not from a panel."""
    text = FILE.read_text().replace("objective = 0.99\n", "objective = 0.9\n")
    assert text != FILE.read_text()
    before, after = Values.load(), Values(tomllib.loads(text))
    overview = [boards.dashboards(values)[0].panels[0] for values in (before, after)]
    assert [panel.steps[-1][0] for panel in overview] == [0.99, 0.9]
    made = json.loads(boards.files()["grafana/watchkeeper-overview.json"])
    (runbooks,) = [one for one in made["templating"]["list"] if one["name"] == "runbooks"]
    assert runbooks["query"] == before["links"].text("runbooks")
