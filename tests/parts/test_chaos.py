"""Thirty seconds of faults on each store, and planted bugs that the checker must catch."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.trial import Trial, held
from tests.chaos.verdict import Verdict
from tests.parts.postgres import Cluster, cluster

_STILL_S = 8


@pytest.fixture(scope="module")
def database() -> Iterator[Cluster]:
    with cluster() as server:
        yield server


def tried(trial: Trial, folder: Path, server: Cluster | None, name: str = "") -> Verdict:
    url = server.fresh(name) if server else f"sqlite:///{folder / 'store.sqlite'}"
    judged, faults = held(trial, folder, url, server)
    print(f"faults {dict(faults)}; {judged}")
    assert faults.total() > 0
    assert judged.runs > 0
    return judged


@pytest.mark.timeout(400)
@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_nothing_is_lost(store: str, tmp_path: Path, database: Cluster) -> None:
    """No accepted run is lost, stuck, finished twice, answered wrongly, or two runs of one key."""
    judged = tried(Trial(), tmp_path, database if store == "postgres" else None, "whole")
    assert judged.holds, (judged, judged.details)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("bug", "found"), [("ack_before_store", "lost"), ("no_takeover", "stuck")])
def test_planted_bug_is_caught(bug: str, found: str, tmp_path: Path) -> None:
    """The checker names the effect of each planted bug."""
    trial = Trial(seconds=15, faults=15, still_s=_STILL_S, bug=bug)
    assert getattr(tried(trial, tmp_path, None), found)


@pytest.mark.timeout(400)
def test_planted_race_is_caught(tmp_path: Path) -> None:
    """The checker sees at last that one key has two runs."""
    trial = Trial(seconds=120, still_s=_STILL_S, bug="key_race", until=["two_runs"])
    assert tried(trial, tmp_path, None).two_runs


@pytest.mark.timeout(400)
def test_missing_fence_is_caught(tmp_path: Path, database: Cluster) -> None:
    """A held process that lost its runs still goes on with them, and the checker sees it.

    Only PostgreSQL can take a lock away from a process that lives: a file's dies with it.
    """
    found = ["stale", "finished_twice"]
    trial = Trial(120, still_s=_STILL_S, bug="no_fence", only_steals=True, until=found)
    judged = tried(trial, tmp_path, database, "unfenced")
    assert judged.stale or judged.finished_twice
