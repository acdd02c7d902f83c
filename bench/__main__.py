"""`python -m bench [start|overhead|serve|stream|tasks]`: one bench, or all of them in some minutes.

No time makes a bench fail. A wrong answer, or a module that should not be loaded, ends it with exit
code 1.
"""

import argparse
import importlib
import os
import platform
import signal
import sys
from typing import Protocol, cast

BENCHES = ("start", "overhead", "serve", "stream", "tasks")


class Bench(Protocol):
    """A module with one measurement."""

    def run(self) -> bool:
        """Measure and print. Returns false if an answer was wrong."""
        ...


def main() -> int:
    """Run the chosen benches, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("benches", nargs="*", metavar="|".join(BENCHES))
    wanted = parser.parse_args().benches or list(BENCHES)
    unknown = [name for name in wanted if name not in BENCHES]
    if unknown:
        parser.error(f"there is no bench {unknown[0]!r}; there are {', '.join(BENCHES)}")
    # `finally` blocks stop the servers; a bare SIGTERM would skip them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {_load()}")
    right = [_bench(name).run() for name in wanted]
    print(f"\n{_load()} at the end; trust ratios of CPU before anything else (bench/README.md)")
    return 0 if all(right) else 1


def _bench(name: str) -> Bench:
    # Imported here, so that no bench pays for the imports of another.
    return cast(Bench, importlib.import_module(f"bench.{name}"))


def _load() -> str:
    return f"load average {os.getloadavg()[0]:.2f}"


if __name__ == "__main__":
    sys.exit(main())
