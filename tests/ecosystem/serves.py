"""What a test shows of the ecosystem: declared beside it, recorded when it has passed.

`make agents` runs the tests of this folder and writes the rows of those that passed to
`record.json`. docs/agents.md is rendered from that record.
"""

import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T", bound=Callable[..., Any])
MARK = "serves"
RECORD = Path(__file__).with_name("record.json")


@dataclass(frozen=True, order=True)
class Row:
    """A part of a package, how it is served or why not, and the test that shows it."""

    package: str
    part: str
    is_served: bool
    how: str
    test: str


def serves(package: str, part: str, how: str) -> Callable[[T], T]:
    """The test shows that this part of a package is served, and how."""
    return _marked(package, part, True, how)


def does_not_serve(package: str, part: str, how: str) -> Callable[[T], T]:
    """The test shows what becomes of a part of a package that is not served."""
    return _marked(package, part, False, how)


def _marked(*declared: Any) -> Callable[[T], T]:
    mark: Callable[[T], T] = pytest.mark.serves(*declared)
    return mark


def declared() -> list[Row]:
    """The rows that the tests of this folder declare."""
    files = sorted(file.stem for file in Path(__file__).parent.glob("test_*.py"))
    return sorted(row for file in files for row in _declared_in(file))


def _declared_in(name: str) -> Iterator[Row]:
    module = importlib.import_module(f"{__package__}.{name}")
    for test, function in vars(module).items():
        for mark in getattr(function, "pytestmark", ()):
            if mark.name == MARK:
                yield row_of(mark.args, f"{name}.{test}")


def row_of(arguments: Iterable[Any], test: str) -> Row:
    """The row that a mark declares of a test."""
    package, part, is_served, how = arguments
    return Row(package, part, is_served, how, test)


def recorded() -> list[Row]:
    """The rows of the record that were shown of the versions that are installed now."""
    if not RECORD.is_file():
        return []
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    versions = record["versions"]
    rows = [Row(**row) for row in record["rows"]]
    return [row for row in rows if versions[row.package] == version(row.package)]


def as_record(rows: Iterable[Row], version_of: Callable[[str], str] = version) -> str:
    """The text of the record: the rows, and which versions they were shown of."""
    known = sorted(rows)
    versions = {row.package: version_of(row.package) for row in known}
    record = {"versions": versions, "rows": [asdict(row) for row in known]}
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"
