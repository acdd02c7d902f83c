"""Words that readers had to decode stay out of names and prose."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("app", "bench", "dashboards", "docs", "examples", "tests")
PAGES = ("README.md", "CHANGELOG.md", "bench/README.md", "tests/README.md")

# Names, each with the word for its meaning. Contract names are none of them.
NAMES = {
    "told": "the thing's own name", "untold": "unreported", "is_told": "is_reported",
    "unworked": "ended_without_worker", "Heard": "Hooks", "heard": "hooks", "hear": "subscribe",
    "speaking": "streaming", "anatomy": "introspection", "Claims": "RunLocks",
    "let_go": "release", "give_back": "release", "given_back": "released", "forget": "delete",
    "forgotten": "deleted", "keeps": "has", "Stand": "RunSnapshot", "Left": "LeftoverWork",
    "left_s": "remaining_s", "patiently": "retry_until_available", "says": "the thing's own name",
    "gone": "the thing's own name", "whoever": "the actor", "for_s": "lease_s",
    "within_s": "timeout_s", "due_at": "deadline", "ends_at": "deadline",
    "give_up_at": "deadline", "seat": "queue position", "MOST_IN_VAIN": "takeovers",
    "is_at_rest": "is_final", "tell_stopped": "record_stopped", "takes_up": "takes over",
}  # fmt: skip

# Phrases, in comments, docstrings and pages.
PHRASES = re.compile(
    r"\b(whoever|unworked|in vain|lets? go|gives? back|given back|(is|are|was|were) told"
    r"|at hand|taken? up|takes up|his time|at rest|puts back)\b",
    re.IGNORECASE,
)


def files() -> Iterator[Path]:
    """Every Python file of the project but this one."""
    for folder in CODE:
        for path in (ROOT / folder).rglob("*.py"):
            if "node_modules" not in path.parts and path != Path(__file__):
                yield path


def retired_names(source: str) -> list[str]:
    """Each retired name in code, with the word for it."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    names = {token.string for token in tokens if token.type == tokenize.NAME}
    return [f"{name}: say {NAMES[name]}" for name in sorted(names & NAMES.keys())]


def retired_phrases(source: str) -> list[str]:
    """Each retired phrase in the comments and docstrings of code."""
    return [
        found[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT or '"""' in token.string[:4]
        for found in PHRASES.finditer(token.string)
    ]


def test_names_are_not_retired() -> None:
    """No identifier is a retired word."""
    found = {str(path.relative_to(ROOT)): retired_names(path.read_text()) for path in files()}
    assert {path: names for path, names in found.items() if names} == {}


def test_phrases_in_code_are_not_retired() -> None:
    """No comment or docstring has a retired phrase."""
    found = {str(path.relative_to(ROOT)): retired_phrases(path.read_text()) for path in files()}
    assert {path: phrases for path, phrases in found.items() if phrases} == {}


def test_phrases_in_pages_are_not_retired() -> None:
    """No page has a retired phrase."""
    pages = [*(ROOT / page for page in PAGES), *(ROOT / "docs").rglob("*.md")]
    found = {
        str(page.relative_to(ROOT)): [m[0] for m in PHRASES.finditer(page.read_text())]
        for page in pages
    }
    assert {page: phrases for page, phrases in found.items() if phrases} == {}


@pytest.mark.parametrize(
    ("source", "names", "phrases"),
    [
        ("told = 1\n", ["told: say the thing's own name"], []),
        ("def f(within_s):\n    pass\n", ["within_s: say timeout_s"], []),
        ("x = 1  # whoever waits\n", [], ["whoever"]),
        ('def f():\n    """Is told of it, and gives back."""\n', [], ["Is told", "gives back"]),
        ('x = "whoever told"\n', [], []),
    ],
)
def test_planted_words_are_found(source: str, names: list[str], phrases: list[str]) -> None:
    """Both checks find what they look for, and leave other strings alone."""
    assert retired_names(source) == names
    assert retired_phrases(source) == phrases
