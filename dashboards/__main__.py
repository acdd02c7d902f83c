"""Writes dashboards/generated from the code, so that what is imported is what was reviewed.

`python -m dashboards` writes the files; with `--check` it fails if one is stale or left over.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dashboards import boards, rules

GENERATED = Path(__file__).parent / "generated"


def main(arguments: Sequence[str] | None = None, place: Path = GENERATED) -> int:
    """Write the files to a folder, or print which files there are stale."""
    parser = argparse.ArgumentParser(prog="python -m dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a file is stale")
    check = parser.parse_args(arguments).check
    wanted = {**boards.files(), **rules.files()}
    stale = sorted(name for name, text in wanted.items() if not _is_written(place / name, text))
    left_over = sorted(_written(place) - wanted.keys())
    if check and (stale or left_over):
        named = ", ".join(stale + left_over)
        print(f"Stale in dashboards/generated: {named}. Run `make dashboards`.", file=sys.stderr)
        return 1
    for name in stale:
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(wanted[name], encoding="utf-8")
    for name in left_over:
        (place / name).unlink()
    return 0


def _written(place: Path) -> set[str]:
    return {str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()}


def _is_written(file: Path, text: str) -> bool:
    return file.is_file() and file.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
