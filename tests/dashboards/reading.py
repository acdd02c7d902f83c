"""Reads the dashboards as Grafana would: the generated files, their panels and their queries."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dashboards import boards

Json = dict[str, Any]

# What Grafana puts in the place of its variables.
CHOSEN = {
    "$__rate_interval": "2m",
    "$__range": "5m",
    "$job": "watchkeeper",
    "$instance": ".+",
    "$agent": ".*",
}


@dataclass(frozen=True)
class Asked:
    """One query, and its panel."""

    board: str
    panel: str
    ref: str
    expr: str

    def __str__(self) -> str:
        return f"{self.board} / {self.panel} / {self.ref}"


def dashboards() -> dict[str, Json]:
    """The generated dashboards by uid."""
    made = (json.loads(text) for text in boards.files().values())
    return {board["uid"]: board for board in made}


def panels(board: Json) -> list[Json]:
    """Its panels, without the titles of its rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(board: Json) -> Iterator[Asked]:
    """Every query of its panels and annotations."""
    for panel in panels(board):
        for target in panel.get("targets", []):
            yield Asked(board["uid"], panel["title"], target["refId"], target["expr"])
    for note in board["annotations"]["list"]:
        yield Asked(board["uid"], f"annotation {note['name']}", "", note["expr"])


def filled(expr: str, times: Mapping[str, str] | None = None) -> str:
    """The expression as Prometheus is asked it."""
    for variable, value in (CHOSEN | dict(times or {})).items():
        expr = expr.replace(variable, value)
    assert not re.search(r"\$\w", expr), expr
    return expr
