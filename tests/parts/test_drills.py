"""Three drills, and the detection of a drill that goes wrong."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.drills.drill import run
from tests.drills.every import DRILLS
from tests.drills.scene import Scene

DOWN = DRILLS["AgentServiceDown"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "alert", ["AgentIterationLimitHits", "AgentRunTimeouts", "AgentServiceDown"]
)
def test_drill(alert: str, tmp_path: Path) -> None:
    """The alert fires for its fault, with its labels and alone, and clears after the repair."""
    result = run(DRILLS[alert], tmp_path, print)
    assert result.faults == []
    assert result.fired_s is not None
    assert result.cleared_s is not None


def test_wrong_labels_are_detected(tmp_path: Path) -> None:
    """An alert that fires for another instance fails its drill."""
    [fault] = run(replace(DOWN, labels={"instance": "elsewhere"}), tmp_path, print).faults
    assert fault.startswith("fired with {")


def test_unexpected_alert_is_detected(tmp_path: Path) -> None:
    """An unexpected alert fails the drill."""
    absent = replace(DOWN, alert="AgentServiceAbsent", labels={}, companions=frozenset())
    assert run(absent, tmp_path, print).faults == ["AgentServiceDown fired too"]


def test_silent_alert_is_detected(tmp_path: Path) -> None:
    """An alert that does not fire fails its drill."""

    def nothing(scene: Scene) -> Iterator[None]:
        yield

    result = run(replace(DOWN, script=nothing), tmp_path, print, fires_within_s=4)
    assert result.faults == ["was not active within 4 s"]
