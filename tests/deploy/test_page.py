"""All that the page on deploying names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/deploy.md").read_text()


def test_alerts_to_begin_with_exist() -> None:
    """Every alert that the page recommends for paging is one of the rules."""
    section = PAGE.partition("## What to alert on first")[2]
    named = set(re.findall(r"`(Agent\w+)`", section))
    rules = (ROOT / "dashboards/generated/prometheus").glob("*.yml")
    defined = {name for file in rules for name in re.findall(r"alert: (\w+)", file.read_text())}
    assert len(named) > 8
    assert named <= defined


def test_files_it_names_exist() -> None:
    """Every file of the project that the page names exists."""
    named = set(re.findall(r"(?<![\w/])((?:deploy|dashboards|requirements)/[\w./-]+\w)", PAGE))
    assert len(named) > 6
    for name in named:
        assert (ROOT / name).exists(), name
