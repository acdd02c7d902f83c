"""The contents of the runbooks, parsed."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.command import ROOT

FOLDER = ROOT / "docs" / "runbooks"
INDEX = FOLDER / "README.md"
PAGES = sorted(page for page in FOLDER.glob("*.md") if page != INDEX)


@dataclass(frozen=True, slots=True)
class Snippet:
    """Something that can be pasted: a query, or one line of shell."""

    page: Path
    language: str
    text: str

    @property
    def name(self) -> str:
        """As the name of a test."""
        return f"{self.page.stem}: {self.text[:60]}"


def snippets(text: str, page: Path) -> list[Snippet]:
    """All of a page; shell is taken line by line."""
    found = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S):
        parts = block.splitlines() if language == "sh" else [block.strip()]
        found += [Snippet(page, language, part) for part in parts]
    return found


ALL = [snippet for page in PAGES for snippet in snippets(page.read_text(), page)]


def of(language: str) -> list[Snippet]:
    """Those in one language."""
    return [snippet for snippet in ALL if snippet.language == language]


def section(text: str, heading: str) -> str:
    """The text below a heading."""
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
