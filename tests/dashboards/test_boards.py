"""The dashboards follow the rules of Grafana's linter, and every alert has its panel."""

from collections.abc import Callable
from copy import deepcopy

import pytest

from dashboards import rules
from dashboards.rules.alert import Board
from dashboards.rules.values import Values
from tests.dashboards import linter
from tests.dashboards.linter import RULES, Rule
from tests.dashboards.reading import Json, dashboards, panels

BOARDS = dashboards()
ALERTS = {alert.name: alert for alert in rules.alerts(Values.load())}
Plant = Callable[[Json], None]


def choice(board: Json, name: str) -> Json:
    """One variable of a dashboard."""
    found: Json = next(one for one in board["templating"]["list"] if one["name"] == name)
    return found


def shaped(board: Json, kind: str) -> Json:
    """The first panel of a kind."""
    return next(panel for panel in panels(board) if panel["type"] == kind)


def titled(board: Json, title: str) -> Json:
    """A panel by its title."""
    return next(panel for panel in panels(board) if panel["title"] == title)


def _recoloured(board: Json) -> None:
    panel = titled(board, "Runs by outcome")
    for override in panel["fieldConfig"]["overrides"]:
        if "completed" in str(override["matcher"]["options"]):
            override["properties"][0]["value"]["fixedColor"] = "red"


# What is done to the Overview, and the rule that finds it.
PLANTED: tuple[tuple[Rule, str, Plant], ...] = (
    (linter.template_datasource, "gone", lambda b: b["templating"]["list"].pop(0)),
    (
        linter.template_datasource,
        "another kind",
        lambda b: choice(b, "datasource").update(query="loki"),
    ),
    (linter.template_choices, "one only", lambda b: choice(b, "agent").update(multi=False)),
    (linter.template_choices, "never all", lambda b: choice(b, "job").update(includeAll=False)),
    (linter.template_choices, "once only", lambda b: choice(b, "instance").update(refresh=1)),
    (
        linter.no_other_source,
        "a fixed source",
        lambda b: panels(b)[0].update(datasource={"type": "prometheus", "uid": "P1"}),
    ),
    (
        linter.no_other_source,
        "a query elsewhere",
        lambda b: panels(b)[0]["targets"][0].update(datasource={"uid": "P1"}),
    ),
    (linter.words, "no title", lambda b: panels(b)[0].update(title="")),
    (linter.words, "no description", lambda b: panels(b)[0].update(description="Runs")),
    (linter.words, "twice", lambda b: panels(b)[0].update(title=panels(b)[1]["title"])),
    (linter.units, "no unit", lambda b: panels(b)[0]["fieldConfig"]["defaults"].pop("unit")),
    (
        linter.units,
        "another unit",
        lambda b: titled(b, "Time to an answer")["fieldConfig"]["defaults"].update(unit="ms"),
    ),
    (linter.targets, "asks nothing", lambda b: panels(b)[0].update(targets=[])),
    (linter.targets, "no name", lambda b: panels(b)[0]["targets"][0].update(legendFormat="")),
    (
        linter.exemplars,
        "off",
        lambda b: titled(b, "Time to an answer")["targets"][0].update(exemplar=False),
    ),
    (
        linter.exemplars,
        "on a counter",
        lambda b: titled(b, "Runs by outcome")["targets"][0].update(exemplar=True),
    ),
    (linter.grid, "over another", lambda b: panels(b)[0]["gridPos"].update(w=8)),
    (linter.grid, "a gap", lambda b: panels(b)[0]["gridPos"].update(w=2)),
    (linter.colours, "a red answer", _recoloured),
    (linter.readonly, "editable", lambda b: b.update(editable=True)),
    (linter.identity, "another uid", lambda b: b.update(uid="x")),
    (linter.identity, "no tag", lambda b: b.update(tags=[])),
    (linter.identity, "one id twice", lambda b: panels(b)[0].update(id=panels(b)[1]["id"])),
    (linter.deploys, "no deploys", lambda b: b["annotations"]["list"].pop(0)),
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("uid", BOARDS)
def test_every_dashboard_follows_every_rule(uid: str, rule: Rule) -> None:
    """No dashboard breaks a rule of the linter."""
    assert list(rule(BOARDS[uid])) == []


@pytest.mark.parametrize(
    ("rule", "plant"),
    [pytest.param(rule, plant, id=f"{rule.__name__} {name}") for rule, name, plant in PLANTED],
)
def test_planted_violations_are_found(rule: Rule, plant: Plant) -> None:
    """Each violation breaks the rule against it."""
    board = deepcopy(BOARDS["watchkeeper-overview"])
    plant(board)
    assert list(rule(board))


def test_every_rule_has_a_planted_violation() -> None:
    """No rule is without a planted violation."""
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


def test_dashboards_are_the_nine_that_alerts_link() -> None:
    """The uids are those that alerts link to, and the titles are numbered in that order."""
    assert list(BOARDS) == [board.value for board in Board]
    for number, board in enumerate(BOARDS.values(), start=1):
        assert board["title"].startswith(f"Watchkeeper / {number} ")


def runbooks(board: Json) -> set[str]:
    """The alerts whose pages the panels of a dashboard lead to."""
    urls = [link["url"] for panel in panels(board) for link in panel["links"]]
    assert all(url.startswith("${runbooks:raw}/") and url.endswith(".md") for url in urls)
    return {url.removeprefix("${runbooks:raw}/").removesuffix(".md") for url in urls}


@pytest.mark.parametrize("uid", BOARDS)
def test_panels_link_existing_runbooks(uid: str) -> None:
    """Every link to a runbook names an existing alert."""
    assert runbooks(BOARDS[uid]) <= set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_panel(alert: str) -> None:
    """The dashboard that an alert opens has a panel that leads to its page."""
    assert alert in runbooks(BOARDS[ALERTS[alert].board.value])
