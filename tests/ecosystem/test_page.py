"""docs/agents.md states the results of the tests with the locked versions, and nothing else."""

import re

from docs import generate
from tests.command import ROOT
from tests.ecosystem.serves import RECORD, as_record, declared

LOCK = (ROOT / "requirements" / "dev.txt").read_text()
AGAIN = "run `make agents`"


def locked(package: str) -> str:
    """The version of a package in the lock."""
    found = re.search(rf"^{re.escape(package)}==(\S+)", LOCK, re.MULTILINE)
    assert found, f"{package} is not locked"
    return found[1]


def test_record_has_the_declared_rows_and_locked_versions() -> None:
    """Each row that a test declares is recorded, with the versions that are locked now."""
    assert RECORD.read_text(encoding="utf-8") == as_record(declared(), locked), AGAIN


def test_page_is_rendered_from_the_record() -> None:
    """The committed page is rendered from the record."""
    page = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")
    assert page == generate.pages()["agents.md"], AGAIN


def test_no_row_is_declared_twice() -> None:
    """No two tests declare the same part of a package."""
    parts = [(row.package, row.part) for row in declared()]
    assert len(parts) == len(set(parts))
