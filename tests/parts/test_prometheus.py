"""A real Prometheus scrapes a real service."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.telemetry import catalogue
from app.telemetry.catalogue import Kind
from tests import otlp
from tests.parts.polling import until
from tests.parts.prometheus import Prometheus, binary, scraping

# What has no sample until something that this test does not cause has happened.
_NOT_CAUSED = {
    catalogue.LLM_RETRIES.name,
    catalogue.LLM_UNPRICED.name,
    catalogue.LABEL_OVERFLOW.name,
}


@dataclass
class Watched:
    """A service with some traffic behind it, and the Prometheus that scrapes it."""

    url: str
    prometheus: Prometheus


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The demo, served by the installed command with tracing on, asked a few times."""
    with otlp.receiver() as receiver:
        environment = {**os.environ, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": receiver.url}
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("watchkeeper")), "serve", "--port", "0"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            address = re.search(r"http://([\d.:]+)", process.stderr.readline())
            assert address is not None
            url = address[0]
            wait_until_up(url)
            with scraping(address[1], tmp_path_factory.mktemp("prometheus")) as prometheus:
                traffic(url)
                yield Watched(url, prometheus)
        finally:
            process.terminate()
            process.communicate(timeout=15)


def wait_until_up(url: str) -> None:
    """Wait until the service answers."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            httpx.get(f"{url}/health")
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the service did not start")


def traffic(url: str) -> None:
    """A run that is completed, one with two tools, one that times out, one that is streamed."""
    for body in (
        {"question": "Where is order 10023?"},
        {"question": "Where are orders 10023 and 10024?"},
        {"question": "Track the parcel of order 10024", "timeout": 0.001},
    ):
        httpx.post(f"{url}/agent", json=body, timeout=30)
    payload = {"question": "Where is order 10023?"}
    httpx.post(f"{url}/agent/stream", json=payload, timeout=30)


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text"])
def test_promtool_accepts_the_metrics(watched: Watched, accept: str) -> None:
    """The scraped metrics pass promtool's check."""
    text = httpx.get(f"{watched.url}/metrics", headers={"accept": accept}).text
    # promtool reads the text format only: exemplars and the end mark are OpenMetrics' own.
    plain = re.sub(r" # \{.*", "", text).replace("# EOF\n", "")
    if accept != "text/plain":
        plain = re.sub(r"^(# (?:TYPE|HELP) \w+) ", _total(plain), plain, flags=re.M)
        plain = re.sub(r"^# UNIT.*\n", "", plain, flags=re.M)
    check = subprocess.run(
        [binary("promtool"), "check", "metrics"], input=plain, capture_output=True, text=True
    )
    faults = [line for line in check.stderr.splitlines() if line.startswith(("agent_", "http_"))]
    assert faults == []
    assert "error" not in check.stderr.lower()


def _total(text: str) -> Callable[[re.Match[str]], str]:
    """OpenMetrics names a counter without its suffix; the text format with it."""
    counters = set(re.findall(r"^# TYPE (\w+) counter", text, flags=re.M))

    def name(found: re.Match[str]) -> str:
        family = found[1].rsplit(" ", 1)[1]
        return f"{found[1]}_total " if family in counters else f"{found[1]} "

    return name


def test_scrape_succeeds(watched: Watched) -> None:
    """Prometheus reports that its scrape of the service succeeded."""
    watched.prometheus.until("up == 1")
    [target] = watched.prometheus.targets()
    assert (target["health"], target["lastError"]) == ("up", "")


@pytest.mark.parametrize(
    "metric", [m for m in catalogue.METRICS if m.name not in _NOT_CAUSED], ids=lambda m: m.name
)
def test_every_metric_has_its_labels(watched: Watched, metric: catalogue.Metric) -> None:
    """Every metric that has a source answers a query, with the labels of the catalogue."""
    suffix = "_count" if metric.kind is Kind.HISTOGRAM else ""
    series = watched.prometheus.until(f"{metric.name}{suffix}")
    labels = set(series[0]["metric"]) - {"__name__", "job", "instance"}
    assert labels == set(metric.label_names)


def test_exemplars_are_stored(watched: Watched) -> None:
    """Prometheus stores the trace id of a sample of a duration."""

    def exemplars() -> list[dict[str, Any]]:
        return watched.prometheus.exemplars("agent_run_duration_seconds_bucket")

    found = until(exemplars, "Prometheus has none")
    labels = found[0]["exemplars"][0]["labels"]
    assert re.fullmatch(r"[0-9a-f]{32}", labels["trace_id"])


def test_first_timeout_is_an_increase(watched: Watched) -> None:
    """The first timeout of a service is an increase that a rate can show."""
    [timeouts] = watched.prometheus.until("sum(agent_timeouts_total) > 0")
    assert float(timeouts["value"][1]) == 1
