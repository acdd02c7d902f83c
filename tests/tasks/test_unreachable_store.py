"""While the store is unreachable, log and metrics report it."""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.command import Serving, serving
from tests.tasks.background import LONG_S
from tests.tasks.test_roles import NAPS, becomes_true, post

pytestmark = pytest.mark.on_file
REJECTED = "agent_requests_rejected_total"
UNREACHABLE, BACK = "store_unreachable", "store_back"


@dataclass(frozen=True)
class Away:
    """A service whose store went away and came back, with its metrics before and meanwhile."""

    before: Mapping[str, float]
    refused: list[tuple[int, str]]
    meanwhile: Mapping[str, float]
    lines: list[dict[str, Any]]


def samples(service: Serving) -> dict[str, float]:
    """Every sample by its name and labels, as the text has them."""
    families = text_string_to_metric_families(httpx.get(f"{service.url}/metrics").text)
    return {
        " ".join((sample.name, *sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def lines(service: Serving, *events: str) -> list[dict[str, Any]]:
    """Its log lines of these events."""
    written = service.out.read_text().splitlines(keepends=True)
    whole = [json.loads(line) for line in written if line.endswith("\n")]  # the last may be half
    return [line for line in whole if line["event"] in events]


@contextmanager
def held(file: Path) -> Iterator[None]:
    """Another program has the file, so that nothing can be written or asked for in time."""
    with closing(sqlite3.connect(file, isolation_level=None, timeout=LONG_S)) as other:
        other.execute("begin immediate")
        yield
        other.execute("rollback")


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Away:
    here = tmp_path_factory.mktemp("away")
    file = here / "store.sqlite"
    variables = {
        "WATCHKEEPER_STORE_URL": f"sqlite:///{file}",
        "WATCHKEEPER_MAX_BACKGROUND_RUNS": "1",
    }
    with serving(here, NAPS, "gone=tests.tasks.background:napping", variables=variables) as first:
        assert post(first, "/agents/gone/async").status_code == 202
        assert post(first, "/agents/gone/async").status_code == 202
        assert becomes_true(lambda: samples(first)["agent_tasks_queued gone"] == 1)
    with serving(here, NAPS, variables=variables) as service:
        for _ in range(3):
            assert post(service, "/agent/async").status_code == 202
        ready = "agent_ready store"

        def gauges() -> dict[str, float]:
            return samples(service)

        assert becomes_true(lambda: gauges()["agent_tasks_running naps"] == 1)
        assert becomes_true(lambda: gauges()["agent_tasks_queued naps"] == 2)
        oldest = "agent_task_oldest_age_seconds naps queued"
        assert becomes_true(lambda: gauges()["agent_tasks_unservable"] > 0 and gauges()[oldest] > 0)
        before = gauges()
        with held(file):
            assert becomes_true(lambda: gauges()[ready] == 0)
            refused = [post(service, "/agent/async") for _ in range(2)]
            meanwhile = gauges()
            assert meanwhile[ready] == 0
            assert becomes_true(lambda: bool(lines(service, UNREACHABLE)))
        assert becomes_true(lambda: gauges()[ready] == 1)
        assert becomes_true(lambda: bool(lines(service, BACK)))
        answers = [(answer.status_code, answer.json()["code"]) for answer in refused]
        return Away(before, answers, meanwhile, lines(service, UNREACHABLE, BACK))


def test_log_has_one_line_for_each_change(away: Away) -> None:
    """One line logs that the store is unreachable, one that it is back; requests add none."""
    events = [(line["event"], line["level"]) for line in away.lines]
    assert events == [(UNREACHABLE, "warning"), (BACK, "info")]


def test_refused_requests_are_counted(away: Away) -> None:
    """Every refused request is counted by its reason, starting at 0."""
    assert away.refused == [(503, "store_unavailable")] * 2
    assert away.before[f"{REJECTED} store_unavailable"] == 0
    assert away.meanwhile[f"{REJECTED} store_unavailable"] == 2


def test_queue_metrics_keep_their_last_values(away: Away) -> None:
    """Queue metrics keep the values that were read last: nothing has recovered meanwhile."""
    expected = {
        "agent_tasks_queued naps": 2,
        "agent_tasks_running naps": 1,
        "agent_tasks_unservable": away.before["agent_tasks_unservable"],
    }
    assert expected["agent_tasks_unservable"] > 0
    assert {name: away.meanwhile[name] for name in expected} == expected
    for age in ("naps queued", "naps running"):
        name = f"agent_task_oldest_age_seconds {age}"
        assert away.meanwhile[name] >= away.before[name] > 0
