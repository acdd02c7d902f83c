"""A real Alertmanager with the shipped configuration."""

from pathlib import Path

import pytest

from tests.alerts.test_alertmanager import CONFIGURATION
from tests.drills.monitoring import alertmanager, until

_AT_A = {"job": "watchkeeper", "instance": "a:8000"}
_AT_B = {"job": "watchkeeper", "instance": "b:8000"}
_ORDERS = {"job": "watchkeeper", "agent": "orders"}
_HELP = {"job": "watchkeeper", "agent": "help"}
_CRITICAL, _WARNING = {"severity": "critical"}, {"severity": "warning"}


def _alert(name: str, *labels: dict[str, str]) -> dict[str, str]:
    return {"alertname": f"Agent{name}"} | {k: v for part in labels for k, v in part.items()}


DOWN = _alert("ServiceDown", _AT_A, _CRITICAL)
LLM = _alert("LlmErrors", {"job": "watchkeeper", "provider": "openai", "model": "m"}, _CRITICAL)
STUCK = _alert("NoSuccess", _ORDERS, _CRITICAL)
STORE = _alert("StoreUnusable", _AT_A, _CRITICAL)
BURN = _alert("ErrorBudgetBurn", _ORDERS, _CRITICAL, {"long": "1h"})


@pytest.mark.parametrize(
    ("source", "target", "suppressed"),
    [
        (DOWN, _alert("Saturated", _AT_A, _WARNING), True),
        (DOWN, _alert("RunStuck", _AT_A, _CRITICAL, _ORDERS), True),
        (DOWN, _alert("Saturated", _AT_B, _WARNING), False),
        (DOWN, _alert("ServiceDown", _AT_B, _CRITICAL), False),
        (DOWN, _alert("RunTimeouts", _ORDERS, _WARNING), False),
        (STUCK, _alert("RunTimeouts", _ORDERS, _WARNING), True),
        (STUCK, _alert("HallucinatedTools", _ORDERS, {"severity": "info"}), True),
        (STUCK, _alert("RunTimeouts", _HELP, _WARNING), False),
        (STUCK, BURN, False),
        (LLM, BURN, True),
        (LLM, _alert("ErrorBudgetBurn", _ORDERS, _CRITICAL, {"job": "other"}), False),
        (LLM, _alert("LlmRateLimited", {"job": "watchkeeper"}, _WARNING), False),
        (STORE, _alert("JournalStuck", _AT_A, _CRITICAL), True),
        (STORE, _alert("JournalStuck", _AT_B, _CRITICAL), False),
        (STORE, _alert("StoreDiskLow", _AT_A, _WARNING), False),
    ],
    ids=lambda value: value["alertname"] if isinstance(value, dict) else str(value),
)
def test_alert_silences_only_its_consequences(
    source: dict[str, str], target: dict[str, str], suppressed: bool, tmp_path: Path
) -> None:
    """An alert silences its own consequences, and nothing else."""
    with alertmanager(tmp_path, CONFIGURATION.read_text()) as manager:
        manager.post(source, target)
        until(lambda: len(manager.alerts()) == 2, 60, "Alertmanager has not both")

        def is_suppressed() -> bool:
            return next(a.suppressed for a in manager.alerts() if a.labels == target)

        if suppressed:
            until(is_suppressed, 60, "it is not silenced")
        assert is_suppressed() is suppressed
        assert not next(a.suppressed for a in manager.alerts() if a.labels == source)
