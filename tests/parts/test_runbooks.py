"""The commands and queries of the runbooks are executed at a service with a history."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.alerts import runbooks
from tests.alerts.runbooks import Snippet
from tests.command import WATCHKEEPER, serving
from tests.drills.monitoring import start_monitoring, until
from tests.parts.prometheus import Prometheus

# Cases that this service does not have: its log has no line of these.
_SAYS_NOTHING = (
    '.outcome == "rate_limited"',
    '.code == "overloaded"',
    "state=queued",
    ".age_s > .timeout_s",
    "_other",
    '"store_unreachable"',
    ".attempts > 1",
)
_PLANS = ("fine", "nine", "loop", "raise", "invent", "fail", "block", "crash")


@dataclass(frozen=True, slots=True)
class Past:
    """A service that has seen much, its log, one of its runs and a Prometheus that scraped it."""

    url: str
    folder: Path
    run_id: str
    prometheus: Prometheus


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    """The drills' order desk, asked for everything that it does wrong."""
    here = tmp_path_factory.mktemp("service")
    (here / "switches").mkdir()
    variables = {
        "DRILL_SWITCHES": str(here / "switches"),
        "WATCHKEEPER_LOG_LEVEL": "debug",
        "WATCHKEEPER_MAX_BACKGROUND_RUNS": "1",
    }
    arguments = ("orders=tests.drills.agents:uncounted", "--log-format", "json")
    with (
        serving(here, *arguments, variables=variables) as service,
        start_monitoring(tmp_path_factory.mktemp("watch")) as monitoring,
    ):
        monitoring.scrape(service.url.removeprefix("http://"))
        monitoring.prometheus.until("up == 1")
        run_id = _live(service.url, here / "switches")
        monitoring.prometheus.until('agent_runs_total{outcome="failed"} > 0')
        finished = len(httpx.get(f"{service.url}/runs?state=finished", timeout=30).json()["runs"])
        # It is written by a thread.
        until(lambda: service.out.read_text().count('"event":"run_finished"') >= finished, 30, "")
        shutil.copy(service.out, here / "watchkeeper.log")
        yield Past(service.url, here, run_id, monitoring.prometheus)


def _live(url: str, switches: Path) -> str:
    """Ask for every plan; gives the run of one that called a tool."""
    with httpx.Client(base_url=url, timeout=60) as client:
        for plan in _PLANS:
            client.post("/agent", json={"question": plan, "metadata": {"caller": "drill"}})
        client.post("/agent/stream", json={"question": "fine"})
        for switch in ("no-price", "break-metrics"):
            (switches / switch).touch()
            client.post("/agent", json={"question": "fine"})
            (switches / switch).unlink()
        client.post("/agent/async", json={"question": "fine"})
        (switches / "hang").touch()
        for _ in range(2):  # one executes, one waits
            client.post("/agent/async", json={"question": "hang"})
        for plan in ("hang", "audit"):
            client.post("/agent", json={"question": plan, "timeout": 0.3})
        for path in ("/agent", "/agent/stream"):  # they execute until the service has stopped
            body = {"question": "hang", "timeout": 200}
            threading.Thread(target=_wait_for, args=(url + path, body), daemon=True).start()
        until(lambda: len(client.get("/runs?state=running").json()["runs"]) == 3, 60, "no runs")
        rows = client.get("/runs?state=finished").json()["runs"]
    return next(str(row["run_id"]) for row in rows if row["iterations"] == 9)


def _wait_for(url: str, body: Mapping[str, Any]) -> None:
    with suppress(httpx.TransportError):
        httpx.post(url, json=body, timeout=300)


@pytest.mark.parametrize("snippet", runbooks.of("sh"), ids=lambda s: s.name)
def test_command_works(snippet: Snippet, past: Past) -> None:
    """Every command ends well, and its query of a log with a history is answered."""
    # -f: an HTTP status that is no success fails the command.
    text = snippet.text.replace("localhost:8000", past.url.removeprefix("http://"))
    text = text.replace("curl -s ", "curl -sf ")
    path = f"{WATCHKEEPER.parent}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", text],
        cwd=past.folder,
        env={**os.environ, "RUN": past.run_id, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr
    quiet = "DELETE" in text or any(part in text for part in _SAYS_NOTHING)
    assert quiet or ended.stdout.strip(), "it says nothing"


@pytest.mark.parametrize("snippet", runbooks.of("promql"), ids=lambda s: s.name)
def test_query_is_answered(snippet: Snippet, past: Past) -> None:
    """Prometheus answers every query; one without samples returns nothing."""
    answer = httpx.get(f"{past.prometheus.url}/api/v1/query", params={"query": snippet.text})
    body = answer.json()
    assert body["status"] == "success", json.dumps(body)
