"""Run the fire drills: all of them, or those that are named. `make drills [DRILL=RunTimeouts]`."""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.drills.drill import Drill, Result, run
from tests.drills.every import DRILLS, WITHOUT


def main() -> int:
    """Run drills; the exit code is 0 if every drill passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="ALERT", help="with or without `Agent`")
    chosen = parser.parse_args().names
    results = [_run(drill) for drill in _chosen(chosen, parser)]
    print(table(results))
    if not chosen:
        print(without())
    failed = [result for result in results if result.faults]
    if failed:
        names = ", ".join(result.drill.alert for result in failed)
        print(f"{len(failed)} of {len(results)} drills failed: {names}.", file=sys.stderr)
    return 1 if failed else 0


def _chosen(names: Sequence[str], parser: argparse.ArgumentParser) -> list[Drill]:
    wanted = [name if name.startswith("Agent") else f"Agent{name}" for name in names]
    for name in wanted:
        if name in WITHOUT:
            parser.error(f"{name} has no drill: {WITHOUT[name]}.")
        if name not in DRILLS:
            parser.error(f"There is no drill {name}. There are: {', '.join(DRILLS)}.")
    return [DRILLS[name] for name in wanted] or list(DRILLS.values())


def _run(drill: Drill) -> Result:
    def say(what: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {drill.alert}: {what}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as here:
        return run(drill, Path(here), say)


def table(results: Sequence[Result]) -> str:
    """The results as a table in Markdown."""
    head = ("alert", "fault", "labels", "active after", "resolved after", "beside it", "result")
    rows = [
        (
            f"`{result.drill.alert}`",
            result.drill.fault,
            ", ".join(f"{name}={value}" for name, value in sorted(_shown(result).items())),
            _seconds(result.fired_s),
            _seconds(result.cleared_s),
            ", ".join(sorted(result.beside)) or "–",
            "; ".join(result.faults) or "as it should",
        )
        for result in results
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def _shown(result: Result) -> dict[str, str]:
    """The labels, without the port that was free that day."""
    return {name: value for name, value in result.labels.items() if name != "instance"}


def without() -> str:
    """The alerts that have no drill, and why."""
    return "\n".join(f"- `{alert}`: {why}." for alert, why in WITHOUT.items())


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
