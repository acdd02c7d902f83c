"""Renders the record of the ecosystem's tests: the packages that are served, how, and the gaps."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[1] / "tests" / "ecosystem" / "record.json"
_TESTS = "../tests/ecosystem"


def parts() -> Iterator[str]:
    """Yield the paragraphs of docs/agents.md."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    yield "# Agents of the ecosystem"
    yield (
        "A test showed each row: it served a real agent of the package, and compared the answer, "
        "the metrics, the spans and the log line. The version is the tested one. "
        "`make agents` runs the tests and writes this page."
    )
    for package, version in record["versions"].items():
        rows = [row for row in record["rows"] if row["package"] == package]
        yield f"## {package} {version}"
        yield from _table("served", [row for row in rows if row["is_served"]])
        yield from _table("not served", [row for row in rows if not row["is_served"]])


def _table(head: str, rows: list[Mapping[str, Any]]) -> Iterator[str]:
    if rows:
        lines = [f"| {head} | how | shown by |", "| --- | --- | --- |"]
        lines += [f"| {row['part']} | {row['how']} | {_link(row['test'])} |" for row in rows]
        yield "\n".join(lines)


def _link(test: str) -> str:
    module = test.partition(".")[0]
    return f"[{module}]({_TESTS}/{module}.py)"
