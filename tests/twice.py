"""Runs pytest, and then what failed once more, alone: what passes then is named as flaky.

    python -m tests.twice "-n 5 tests/api" "STORE=postgres tests/tasks"

Each argument is one call of pytest: its options, after the variables of its environment. A flaky
test fails nothing, and more than three of them do. A test that fails twice fails.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_FLAKY = 3
# With more failures the verdict is certain: a second run would only take long.
MOST_REPEATED = 20
_OK, _FAILED = 0, 1  # what pytest returns; anything else is no verdict on tests


@dataclass(frozen=True, slots=True)
class Call:
    """One call of pytest: variables of its environment, and its options."""

    variables: Mapping[str, str]
    options: tuple[str, ...]

    @classmethod
    def parse(cls, line: str) -> "Call":
        """Take `NAME=value … options` apart, as a shell does."""
        words = shlex.split(line)
        count = next((n for n, word in enumerate(words) if not _is_variable(word)), len(words))
        pairs = (word.partition("=") for word in words[:count])
        return cls({name: value for name, _, value in pairs}, tuple(words[count:]))

    def run(self, *options: str) -> tuple[int, Mapping[str, bool]]:
        """Run pytest; returns its exit code, and whether each test that ran has passed."""
        with tempfile.TemporaryDirectory() as here:
            file = Path(here) / "outcomes"
            file.touch()
            # With `=`: a path on its own would count where pytest looks for its root.
            plugin = ("-p", "tests.outcomes", f"--outcomes={file}")
            ended = subprocess.run(
                [sys.executable, "-m", "pytest", *plugin, *options],
                env={**os.environ, **self.variables},
                check=False,
            )
            passed: dict[str, bool] = {}
            for line in file.read_text(encoding="utf-8").splitlines():
                phase = json.loads(line)
                passed[phase["id"]] = passed.get(phase["id"], True) and not phase["failed"]
        return ended.returncode, passed


def main(lines: Sequence[str]) -> int:
    """Run every call, then the failures alone; returns the exit code."""
    failed: list[tuple[Call, list[str]]] = []
    for call in map(Call.parse, lines):
        code, passed = call.run(*call.options)
        names = [name for name, is_passed in passed.items() if not is_passed]
        if code not in (_OK, _FAILED) or (code == _FAILED and not names):
            return code
        if names:
            failed.append((call, names))
    count = sum(len(names) for _, names in failed)
    if count > MOST_REPEATED:
        print(f"\n{count} tests failed: too many to run them again.")
        return _FAILED
    return _verdict(failed, count) if failed else _OK


def _verdict(failed: Sequence[tuple[Call, list[str]]], count: int) -> int:
    """Run the failures once more, print what became of each, return the exit code."""
    print(f"\nFailed: {count}. They run once more, alone.", flush=True)
    flaky: list[str] = []
    broken: list[str] = []
    for call, names in failed:
        _, passed = call.run(*names)
        for name in names:
            (flaky if passed.get(name) else broken).append(name)
    for name in flaky:
        print(f"flaky: {name}")
    for name in broken:
        print(f"failed twice: {name}")
    if len(flaky) > MOST_FLAKY:
        print(f"{len(flaky)} flaky tests; at most {MOST_FLAKY} are let pass.")
    return _FAILED if broken or len(flaky) > MOST_FLAKY else _OK


def _is_variable(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.isidentifier()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
