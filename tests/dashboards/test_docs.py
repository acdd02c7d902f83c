"""The pages describe the dashboards as they are."""

import re
from pathlib import Path

import pytest

from app.telemetry.catalogue import AGENT, RUNS
from dashboards import links
from dashboards.queries import rate
from tests.dashboards.reading import dashboards

DOCS = Path(__file__).parents[2] / "docs"
PAGE, WALK = DOCS / "dashboards.md", DOCS / "why-runs-time-out.md"
BOARDS = dashboards()
TITLES = {panel["title"] for board in BOARDS.values() for panel in board["panels"]}
LINKS = {link.title for link in links.of(rate(RUNS, AGENT))}
_MOST_BYTES = 400_000
# Bold in the walk, and no panel: the ticket that it begins with.
_TICKET = "AgentRunTimeouts, agent orders, phase llm"


@pytest.mark.parametrize("uid", BOARDS)
def test_every_dashboard_is_described(uid: str) -> None:
    """The page names each dashboard by its title, and there is a picture of it."""
    title = BOARDS[uid]["title"].removeprefix("Watchkeeper / ")
    assert f"| {title} |" in PAGE.read_text()
    picture = DOCS / "pictures" / f"{uid}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < _MOST_BYTES


def test_walkthrough_names_existing_panels() -> None:
    """Every panel, row and link that the walkthrough names exists."""
    text = " ".join(WALK.read_text().split())
    bold = set(re.findall(r"\*\*([^*`]+)\*\*", text)) - {_TICKET}
    italic = set(re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", text))
    assert len(bold) > 8
    assert len(italic) > 3
    assert bold | italic <= TITLES | LINKS
