"""Prometheus and Alertmanager with the rules that are shipped, sped up by one factor."""

import json
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from dashboards import rules
from dashboards.rules.values import FILE, Values, scaled
from tests.parts.prometheus import Prometheus, binary
from tests.ports import free_port

# A minute of the rules is a second of a drill: windows, `for`, ages, intervals, and what
# Alertmanager waits for. Thresholds are as they are. The shortest window, 5m, holds ten scrapes.
SPEED = 60
SCRAPE_INTERVAL, LOOKBACK, RESEND_DELAY = "30s", "5m", "1m"
_UP_WITHIN_S = 60.0
# The discard port: nothing listens there.
_NOBODY = "http://127.0.0.1:9/"

_PROMETHEUS = """\
global: {{scrape_interval: {interval}, scrape_timeout: {interval}, evaluation_interval: {interval}}}
rule_files: ['{here}/rules/*.yml']
alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{alertmanager}']}}]}}]}}
scrape_configs:
- job_name: watchkeeper
  file_sd_configs: [{{files: ['{here}/targets.json']}}]
"""


@dataclass(frozen=True, slots=True)
class Active:
    """An alert that Alertmanager holds, sent to a receiver or suppressed by another."""

    labels: dict[str, str]
    suppressed: bool

    @property
    def name(self) -> str:
        """Which alert it is."""
        return self.labels["alertname"]


class Alertmanager:
    """Asks it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def alerts(self) -> list[Active]:
        """Every alert that is not resolved."""
        answer = httpx.get(f"{self.url}/api/v2/alerts", timeout=10)
        answer.raise_for_status()
        return [
            Active(alert["labels"], alert["status"]["state"] == "suppressed")
            for alert in answer.json()
        ]

    def post(self, *alerts: dict[str, str]) -> None:
        """Tell it of alerts, as Prometheus does."""
        body = [{"labels": labels} for labels in alerts]
        httpx.post(f"{self.url}/api/v2/alerts", json=body, timeout=10).raise_for_status()


@dataclass(frozen=True, slots=True)
class Monitoring:
    """Both, and the file of targets that Prometheus reads again when it changes."""

    prometheus: Prometheus
    alertmanager: Alertmanager
    targets: Path
    process: subprocess.Popen[bytes]

    def scrape(self, *targets: str) -> None:
        """Scrape these from now on, and nothing else."""
        beside = self.targets.with_suffix(".new")
        beside.write_text(json.dumps([{"targets": list(targets)}]))
        beside.replace(self.targets)


@contextmanager
def start_monitoring(here: Path, scrape_interval: str = SCRAPE_INTERVAL) -> Iterator[Monitoring]:
    """Both programs, on free ports, until the block ends; Alertmanager has no receiver."""
    values = sped_up()
    files = rules.files(values)
    (here / "rules").mkdir()
    for name in ("slo.yml", "alerts.yml"):
        (here / "rules" / name).write_text(files[f"prometheus/{name}"])
    with alertmanager(here, files["alertmanager/alertmanager.yml"]) as manager:
        interval = scaled(scrape_interval, SPEED)
        address = manager.url.removeprefix("http://")
        text = _PROMETHEUS.format(interval=interval, here=here, alertmanager=address)
        (here / "prometheus.yml").write_text(text)
        (here / "targets.json").write_text("[]")
        port = free_port()
        command = [
            binary("prometheus"),
            f"--config.file={here / 'prometheus.yml'}",
            f"--storage.tsdb.path={here / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            f"--query.lookback-delta={scaled(LOOKBACK, SPEED)}",
            f"--rules.alert.resend-delay={scaled(RESEND_DELAY, SPEED)}",
            "--log.level=error",
        ]
        with _program(command, f"http://127.0.0.1:{port}", here / "prometheus.log") as process:
            prometheus = Prometheus(f"http://127.0.0.1:{port}")
            yield Monitoring(prometheus, manager, here / "targets.json", process)


def sped_up() -> Values:
    """The values that are shipped, in a shorter time."""
    tables: dict[str, dict[str, Any]] = tomllib.loads(FILE.read_text())
    tables["receivers"] = dict.fromkeys(tables["receivers"], _NOBODY)
    return Values(tables, SPEED)


@contextmanager
def alertmanager(here: Path, configuration: str) -> Iterator[Alertmanager]:
    """A real Alertmanager on a free port."""
    (here / "alertmanager.yml").write_text(configuration)
    port = free_port()
    command = [
        binary("prometheus-alertmanager"),
        f"--config.file={here / 'alertmanager.yml'}",
        f"--storage.path={here / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
        "--log.level=error",
    ]
    url = f"http://127.0.0.1:{port}"
    with _program(command, url, here / "alertmanager.log"):
        yield Alertmanager(url)


@contextmanager
def _program(command: Sequence[str], url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        until(lambda: _is_ready(url, process, log), _UP_WITHIN_S, f"{command[0]} is not up")
        yield process
    finally:
        process.kill()
        process.wait(10)


def _is_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(log.read_text())
    try:
        return httpx.get(f"{url}/-/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def until(condition: Callable[[], object], timeout_s: float, otherwise: str) -> float:
    """Wait until the claim is true: the seconds it took. Raises TimeoutError after `timeout_s`."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"{otherwise} (within {timeout_s:g} s)")
        time.sleep(0.1)
    return time.monotonic() - began
