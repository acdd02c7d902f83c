"""The rules of Grafana's dashboard linter, and some of our own, on what Grafana would read.

Each rule is a function that names what is wrong. Ours differ from the linter's in one thing: "All"
jobs and instances are those that are listed, since a Prometheus has other jobs too, with metrics
of the same names.
"""

import re
from collections.abc import Callable, Iterator

from app.telemetry.catalogue import Kind
from dashboards.colours import WORDS
from tests.dashboards.promql import selectors
from tests.dashboards.reading import Json, panels

SOURCE = "${datasource}"
_CHOICES = ("job", "instance", "agent")
_COLUMNS = 24
_WORD = re.compile(r"/\(\^\| \)(\S+)\$/")

Rule = Callable[[Json], Iterator[str]]


def _variables(board: Json) -> dict[str, Json]:
    return {variable["name"]: variable for variable in board["templating"]["list"]}


def template_datasource(board: Json) -> Iterator[str]:
    """The data source is the reader's choice."""
    source = _variables(board).get("datasource", {})
    if (source.get("type"), source.get("query")) != ("datasource", "prometheus"):
        yield "no choice of a data source"
    elif source.get("label") != "Data source":
        yield "the choice of a data source has another name"


def template_choices(board: Json) -> Iterator[str]:
    """Job, instance and agent are the reader's choice: several, or all, looked up anew."""
    for name in _CHOICES:
        choice = _variables(board).get(name, {})
        wanted = {"type": "query", "multi": True, "includeAll": True, "refresh": 2}
        if any(choice.get(key) != value for key, value in wanted.items()):
            yield f"no choice of {name}"
        elif choice["datasource"]["uid"] != SOURCE:
            yield f"{name} is looked up elsewhere"


def no_other_source(board: Json) -> Iterator[str]:
    """Every panel, query and annotation asks the chosen data source."""
    asking = [*panels(board), *(t for panel in panels(board) for t in panel.get("targets", []))]
    for one in [*asking, *board["annotations"]["list"]]:
        if one.get("datasource", {}).get("uid") != SOURCE:
            yield f"{one.get('title') or one.get('refId') or one.get('name')} asks elsewhere"


def words(board: Json) -> Iterator[str]:
    """Every panel has a title, and a description for somebody who sees it for the first time."""
    for panel in panels(board):
        if not panel.get("title"):
            yield "a panel has no title"
        description = panel.get("description") or ""
        if len(description) < 20 or not description.endswith("."):
            yield f"{panel.get('title')} is not described"
    if len({panel.get("title") for panel in panels(board)}) < len(panels(board)):
        yield "two panels have one title"


def units(board: Json) -> Iterator[str]:
    """Every panel has a unit, and it is that of what is shown."""
    for panel in panels(board):
        unit = panel["fieldConfig"]["defaults"].get("unit")
        if not unit:
            yield f"{panel['title']} has no unit"
            continue
        for target in panel.get("targets", []) if panel["type"] != "table" else []:
            expected = _unit(target["expr"])
            if expected and unit not in expected:
                yield f"{panel['title']} is not in {unit}"


def _unit(expr: str) -> tuple[str, ...]:
    """The units that an expression may be in; none when it is of arithmetic that we cannot read."""
    (first, *others) = selectors(expr)
    if others or " / " in expr:
        return ()
    as_it_is = first.part == "_bucket" or (first.metric and first.metric.kind is Kind.GAUGE)
    if as_it_is and re.search(r"_seconds(_bucket)?$", first.name):
        return ("s", "dtdurations")
    if as_it_is and re.search(r"_timestamp_seconds$|_time_seconds$", first.name):
        return ("dtdurations",)
    if first.name.endswith("_bytes"):
        return ("bytes",)
    if "_usd_" in first.name:
        return ("currencyUSD",)
    if "_ratio" in first.name:
        return ("percentunit",)
    if expr.startswith("60 * "):
        return ("suffix:/min", "suffix: s/min", "short")
    return ()


def targets(board: Json) -> Iterator[str]:
    """Every panel asks something, and every line has a name in the legend."""
    for panel in panels(board):
        if not panel.get("targets"):
            yield f"{panel['title']} asks nothing"
        for target in panel.get("targets", []):
            if target.get("legendFormat", "") in ("", "__auto"):
                yield f"{panel['title']} has a line without a name"


def exemplars(board: Json) -> Iterator[str]:
    """Exemplars are on where a histogram has them, and nowhere else."""
    for panel in panels(board):
        for target in panel.get("targets", []):
            bucket = [one for one in selectors(target["expr"]) if one.part == "_bucket"]
            has = any(one.metric and one.metric.exemplar for one in bucket)
            over_time = not target.get("instant") and "/" not in target["expr"]
            if target.get("exemplar", False) != (has and over_time):
                yield f"{panel['title']} has exemplars on or off against its metric"


def grid(board: Json) -> Iterator[str]:
    """Panels fill the width of the page and do not overlap."""
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        if cells & taken or at["x"] + at["w"] > _COLUMNS:
            yield f"{panel['title']} lies over something"
        taken |= cells
    bottom = max(y for _, y in taken) + 1
    if len(taken) != bottom * _COLUMNS:
        yield "there are gaps"


def colours(board: Json) -> Iterator[str]:
    """A word has its one colour everywhere."""
    for panel in panels(board):
        for override in panel["fieldConfig"]["overrides"]:
            word = _WORD.fullmatch(str(override["matcher"].get("options")))
            colour = next((p["value"] for p in override["properties"] if p["id"] == "color"), None)
            if word and colour != {"mode": "fixed", "fixedColor": WORDS[word[1]]}:
                yield f"{word[1]} has another colour on {panel['title']}"


def readonly(board: Json) -> Iterator[str]:
    """What is changed by hand would be lost: it is generated."""
    if board.get("editable", True):
        yield "it can be edited"


def identity(board: Json) -> Iterator[str]:
    """It can be linked to, and found beside the others."""
    if not board["uid"].startswith("watchkeeper-"):
        yield "its uid is not ours"
    if board["tags"] != ["watchkeeper"]:
        yield "its tag is not ours"
    ids = [panel["id"] for panel in board["panels"]]
    if len(set(ids)) < len(ids):
        yield "two panels have one id"


def deploys(board: Json) -> Iterator[str]:
    """Deploys, restarts and alerts are marked."""
    if [note["name"] for note in board["annotations"]["list"]] != ["Deploys", "Restarts", "Alerts"]:
        yield "something is not marked"


RULES: tuple[Rule, ...] = (
    template_datasource, template_choices, no_other_source, words, units, targets, exemplars, grid,
    colours, readonly, identity, deploys,
)  # fmt: skip
