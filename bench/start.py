"""The time of a service from its command to readiness, and the modules that it loads."""

import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench import table
from bench.process import running, uvicorn, watchkeeper
from tests.ports import free_port

ROUNDS = 3
# Model libraries and their dependencies: the demo uses none of them.
HEAVY = (
    "openai", "langchain_openai", "langchain_classic", "tiktoken", "aiohttp", "numpy", "pandas",
    "sqlalchemy", "torch", "transformers",
)  # fmt: skip
# The demo does not use it either, but langchain_core imports langsmith, which imports it.
UNAVOIDABLE = ("httpx2",)
_IMPORTED = re.compile(r"^import time: +(\d+) \| +\d+ \| +([\w.]+)$", re.MULTILINE)
_LARGEST = 12


@dataclass(frozen=True, slots=True)
class Start:
    """One start, until the first answer."""

    wall_s: float
    cpu_s: float
    rss_mb: float


def run() -> bool:
    """Measure and print. Returns false if the service loads an unused model library."""
    ours, plain = list[Start](), list[Start]()
    for _ in range(ROUNDS):
        port = free_port()
        ours.append(_start(watchkeeper(None, port), port, "/health/ready"))
        port = free_port()
        plain.append(_start(uvicorn("bench.plain:graph_app", port), port, "/docs"))
    rows = [
        _row("watchkeeper serve (demo): first 200 of /health/ready", ours),
        _row("uvicorn, shortest app around create_agent: first 200 of /docs", plain),
    ]
    table.show("Start", ["medians", "seconds", "CPU s", "RSS MB"], rows)
    return _imports()


def _start(command: Sequence[str], port: int, path: str) -> Start:
    began = time.perf_counter()
    with running(command, port) as server:
        server.wait_until(path)
        return Start(time.perf_counter() - began, server.cpu_s(), server.rss_mb())


def _row(name: str, starts: Sequence[Start]) -> list[object]:
    columns = ([getattr(s, field) for s in starts] for field in ("wall_s", "cpu_s", "rss_mb"))
    return [name, *(statistics.median(column) for column in columns)]


def _imports() -> bool:
    """Return the modules that a ready service has loaded, and the packages that took longest."""
    port = free_port()
    with running(watchkeeper(None, port, "-X", "importtime"), port) as server:
        server.wait_until("/health/ready")
        found = _IMPORTED.findall(server.output())
    packages: Counter[str] = Counter()
    for microseconds, module in found:
        packages[module.partition(".")[0]] += int(microseconds)
    rows = [[name, us / 1000] for name, us in packages.most_common(_LARGEST)]
    table.show(
        f"Loaded when ready: {len(found)} modules; packages that took longest, by themselves",
        ["package", "ms"],
        rows,
    )
    heavy = [name for name in HEAVY if name in packages]
    brought = [name for name in UNAVOIDABLE if name in packages]
    print(f"\n  heavy modules loaded that nothing uses: {', '.join(heavy) or 'none'}")
    print(f"  loaded by langchain_core itself, for langsmith: {', '.join(brought) or 'none'}")
    return not heavy
