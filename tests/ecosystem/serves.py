"""What a test shows of the ecosystem, declared beside it, for the table in docs/agents.md."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T", bound=Callable[..., Any])
MARK = "serves"


@dataclass(frozen=True, order=True)
class Row:
    """One row of the table: a part of a package, how it is served, and the test that shows it."""

    package: str
    part: str
    how: str
    test: str


def serves(package: str, part: str, how: str) -> Callable[[T], T]:
    """The test shows that this part of a package is served, and how."""
    mark: Callable[[T], T] = pytest.mark.serves(package, part, how)
    return mark


def declared() -> list[Row]:
    """The rows that the tests of this folder declare."""
    return sorted(row for file in _modules() for row in _declared_in(file))


def _modules() -> list[str]:
    return sorted(file.stem for file in Path(__file__).parent.glob("test_*.py"))


def _declared_in(name: str) -> Iterator[Row]:
    module = importlib.import_module(f"{__package__}.{name}")
    for test, function in vars(module).items():
        for mark in getattr(function, "pytestmark", ()):
            if mark.name == MARK:
                yield Row(*mark.args, test=f"{name}.{test}")
