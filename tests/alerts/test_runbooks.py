"""Every alert has a runbook that a tired person can follow, and every runbook has its alert."""

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.telemetry import conventions
from app.telemetry.catalogue import METRICS
from app.telemetry.lines import LINES
from dashboards import rules
from dashboards.rules.promql import OF_PROMETHEUS
from dashboards.rules.slo import BURNS, bad_share
from dashboards.rules.values import Values
from tests.alerts import runbooks
from tests.alerts.promtool import program

HEADINGS = ["Meaning", "Impact", "Diagnosis", "Mitigation", "When it is not this"]
ALERTS = {alert.name: alert for alert in rules.alerts(Values.load())}
# Metrics of Prometheus, Alertmanager and the process beside the catalogue.
FOREIGN = r"(process|prometheus|alertmanager)_\w+|ALERTS"


def test_alerts_and_runbooks_belong_together() -> None:
    """Each alert has a page, and each page an alert."""
    assert {page.stem for page in runbooks.PAGES} == set(ALERTS)


def test_index_has_every_alert() -> None:
    """The index names every alert with its severities."""
    rows = re.findall(
        r"^\| \[(\w+)\]\((\w+)\.md\) \| ([a-z ]+) \|", runbooks.INDEX.read_text(), re.M
    )
    assert [name for name, _, _ in rows] == list(ALERTS)
    for name, target, severities in rows:
        assert name == target
        defined = {str(a.severity) for a in rules.alerts(Values.load()) if a.name == name}
        assert set(severities.split(" or ")) == defined


@pytest.mark.parametrize("page", runbooks.PAGES, ids=lambda page: page.stem)
def test_page_has_five_headings(page: Path) -> None:
    """A page has exactly the five headings, each with something below it."""
    text = page.read_text()
    assert re.findall(r"^# (.*)$", prose(text), re.M) == [page.stem]
    assert re.findall(r"^## (.*)$", prose(text), re.M) == HEADINGS
    for heading in HEADINGS:
        assert len(runbooks.section(text, heading).split()) > 5, heading
    kinds = {s.language for s in runbooks.snippets(runbooks.section(text, "Diagnosis"), page)}
    assert {"promql", "sh"} <= kinds
    assert "curl" in runbooks.section(text, "Diagnosis")


def prose(text: str) -> str:
    """A page without what can be pasted."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def unparsed(queries: Sequence[str], here: Path) -> str:
    """What Prometheus' own parser holds against the queries."""
    recorded = [{"record": f"q{n}", "expr": query} for n, query in enumerate(queries)]
    file = here / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": recorded}]}))
    command = [program("promtool"), "check", "rules", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    return "" if ended.returncode == 0 else ended.stderr


def unknown(query: str) -> set[str]:
    """Names of metrics in a query that nothing exposes."""
    metrics = [*METRICS, *OF_PROMETHEUS]
    known = {m.name + part for m in metrics for part in ("", "_bucket", "_count", "_sum")}
    known |= {bad_share(window) for burn in BURNS for window in (burn.long, burn.short)}
    bare = re.sub(r'"[^"]*"|\[[^]]*\]|\b(?:by|on|group_left) *\([^)]*\)|\{[^}]*\}', "", query)
    named = set(re.findall(r"[a-zA-Z][\w:]*[_:][\w:]+|\bup\b|\bALERTS\b", bare))
    functions = {name for name in named if re.search(rf"\b{name}\(", query)}
    return {n for n in named - known - functions if not re.fullmatch(FOREIGN, n)}


@pytest.mark.waits
def test_every_query_parses(tmp_path: Path) -> None:
    """Prometheus' parser accepts every query."""
    assert unparsed([snippet.text for snippet in runbooks.of("promql")], tmp_path) == ""


@pytest.mark.waits
@pytest.mark.parametrize("query", ["sum by (job (up)", "rate(up)", "up > 0.8 * on (job) up"])
def test_wrong_query_is_detected(query: str, tmp_path: Path) -> None:
    """A query that does not parse would fail the test above."""
    assert unparsed([query], tmp_path) != ""


@pytest.mark.parametrize("snippet", runbooks.of("promql"), ids=lambda s: s.name)
def test_every_query_names_known_metrics(snippet: runbooks.Snippet) -> None:
    """Every metric in a query is in the catalogue, or Prometheus' own."""
    assert unknown(snippet.text) == set()


@pytest.mark.parametrize(
    "query",
    [
        "rate(agent_run_total[5m])",
        "agent_runs_in_fligth",
        "agent:runs_bad:ratio_rate9m",
        "sum(agent_x_y)",
    ],
)
def test_unknown_metric_is_detected(query: str) -> None:
    """An unknown metric would fail the test above."""
    assert unknown(query) != set()


@pytest.mark.parametrize("snippet", runbooks.of("traceql"), ids=lambda s: s.name)
def test_every_trace_query_names_known_attributes(snippet: runbooks.Snippet) -> None:
    """Every attribute and span in a trace query is one of ours."""
    known = {value for value in vars(conventions).values() if isinstance(value, str)}
    assert set(re.findall(r"span\.([\w.]+)", snippet.text)) <= known
    assert set(re.findall(r'name =~ "(\w+)', snippet.text)) <= known


def test_every_log_query_names_known_events() -> None:
    """Every event in a query of the log is one of ours."""
    events = {line.event for line in LINES}
    for snippet in runbooks.of("sh"):
        named = set(re.findall(r'\.event == "(\w+)"', snippet.text))
        listed = re.search(r"\.event \| IN\(([^)]*)\)", snippet.text)
        named |= set(re.findall(r'"(\w+)"', listed[1])) if listed else set()
        assert named <= events, snippet.text
