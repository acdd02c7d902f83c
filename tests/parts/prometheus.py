"""A real Prometheus that scrapes one address, on a free loopback port."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.ports import free_port

_START_S = 60


def binary(name: str) -> str:
    """Where a program of the package prometheus is."""
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is missing: run make parts (it installs Debian's prometheus).")
    return found


@contextmanager
def scraping(target: str, folder: Path, rules: Sequence[Path] = ()) -> Iterator["Prometheus"]:
    """Start Prometheus with exemplar storage, scraping `target` each second; stop it at the end.

    It evaluates the files of `rules` each second too, where a group does not say otherwise.
    """
    port = free_port()
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: [{', '.join(map(str, rules))}]\n"
        "scrape_configs:\n"
        f"- {{job_name: watchkeeper, static_configs: [{{targets: ['{target}']}}]}}\n"
    )
    process = subprocess.Popen(
        [
            binary("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
            "--log.level=error",
        ]
    )
    try:
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        prometheus.wait_until_ready(process)
        yield prometheus
    finally:
        process.terminate()
        process.wait(10)


class Prometheus:
    """Asks it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """An instant query, of now or of then: the series it gives."""
        then = {} if at is None else {"time": str(at)}
        found: list[dict[str, Any]] = self._get("query", query=expression, **then)["result"]
        return found

    def over(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """A range query: the series it gives."""
        times = {"start": str(start), "end": str(end), "step": str(step)}
        found: list[dict[str, Any]] = self._get("query_range", query=expression, **times)["result"]
        return found

    def exemplars(self, expression: str) -> list[dict[str, Any]]:
        """The exemplars of the last hour."""
        now = time.time()
        found: list[dict[str, Any]] = self._get(
            "query_exemplars", query=expression, start=str(now - 3600), end=str(now + 1)
        )
        return found

    def targets(self) -> list[dict[str, Any]]:
        """What it scrapes, and how that went."""
        found: list[dict[str, Any]] = self._get("targets")["activeTargets"]
        return found

    def until(self, expression: str, timeout_s: float = 60) -> list[dict[str, Any]]:
        """Wait until a query gives something."""
        end = time.monotonic() + timeout_s
        while not (found := self.query(expression)):
            assert time.monotonic() < end, f"nothing for {expression}"
            time.sleep(0.2)
        return found

    def wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until it answers."""
        end = time.monotonic() + _START_S
        while time.monotonic() < end and process.poll() is None:
            try:
                if httpx.get(f"{self.url}/-/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise RuntimeError("Prometheus did not start")

    def _get(self, path: str, **query: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=query)
        answer.raise_for_status()
        return answer.json()["data"]
