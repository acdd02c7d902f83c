"""A small language of panels: a dashboard reads like a table of contents.

What is here are values. `dashboards.grafana` turns them into what Grafana imports.
"""

from dataclasses import dataclass
from enum import StrEnum

from dashboards.colours import PLAIN, Steps
from dashboards.queries import Query
from dashboards.rules.alert import Board

SECONDS, DURATION, PART, PIECES, BYTES = "s", "dtdurations", "percentunit", "short", "bytes"
DOLLARS, ITSELF = "currencyUSD", "none"
PER_MINUTE = "suffix:/min"


class Shape(StrEnum):
    """The shape of a panel. The values are Grafana's names of its plugins."""

    GRAPH = "timeseries"
    NUMBER = "stat"
    BARS = "bargauge"
    HEAT = "heatmap"
    TABLE = "table"
    STATES = "state-timeline"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table. The series of its query are the rows."""

    name: str
    query: Query
    unit: str
    steps: Steps = PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel. `limits` and `alarms` are dashed lines; `runbooks` are names of alerts.

    A limit is a metric of the service; an alarm is the threshold of a rule. `wide` panels have a
    scale by powers of ten, since their limit is far from their usual values.
    """

    title: str
    description: str
    unit: str
    shape: Shape
    width: int
    height: int = 8
    queries: tuple[Query, ...] = ()
    columns: tuple[Column, ...] = ()
    limits: tuple[Query, ...] = ()
    alarms: tuple[float, ...] = ()
    steps: Steps = PLAIN
    stacked: bool = False
    wide: bool = False
    most: float | None = None
    empty: str = "nothing yet"
    runbooks: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[Query, ...]:
        """All queries of the panel."""
        return (*self.queries, *(column.query for column in self.columns), *self.limits)


@dataclass(frozen=True, slots=True)
class Row:
    """Panels that together answer one question."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page."""

    uid: Board
    title: str
    description: str
    rows: tuple[Row, ...]
    since: str = "now-1h"

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All its panels, from top to bottom."""
        return tuple(panel for row in self.rows for panel in row.panels)


def row(title: str, *panels: Panel) -> Row:
    """Return a row with a title."""
    return Row(title, panels)


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    limits: tuple[Query, ...] = (),
    alarms: tuple[float, ...] = (),
    stacked: bool = False,
    wide: bool = False,
    most: float | None = None,
    width: int = 12,
    runbooks: tuple[str, ...] = (),
) -> Panel:
    """Return lines over time, with the limits that they should stay below."""
    return Panel(
        title=title,
        description=description,
        unit=unit,
        shape=Shape.GRAPH,
        queries=queries,
        limits=limits,
        alarms=alarms,
        stacked=stacked,
        wide=wide,
        most=most,
        width=width,
        runbooks=runbooks,
    )


def number(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    steps: Steps = PLAIN,
    empty: str = "nothing yet",
    width: int = 4,
    height: int = 4,
    runbooks: tuple[str, ...] = (),
) -> Panel:
    """Return one number."""
    return Panel(
        title=title,
        description=description,
        unit=unit,
        shape=Shape.NUMBER,
        queries=(query,),
        steps=steps,
        empty=empty,
        width=width,
        height=height,
        runbooks=runbooks,
    )


def bars(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    steps: Steps = PLAIN,
    most: float | None = None,
    width: int = 12,
    runbooks: tuple[str, ...] = (),
) -> Panel:
    """Return bars that compare values over the shown time."""
    return Panel(
        title=title,
        description=description,
        unit=unit,
        shape=Shape.BARS,
        queries=(query,),
        steps=steps,
        most=most,
        width=width,
        runbooks=runbooks,
    )


def heat(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    width: int = 12,
    runbooks: tuple[str, ...] = (),
) -> Panel:
    """Return a heatmap of a histogram over time."""
    return Panel(
        title=title,
        description=description,
        unit=unit,
        shape=Shape.HEAT,
        queries=(query,),
        width=width,
        runbooks=runbooks,
    )


def table(
    title: str,
    description: str,
    *columns: Column,
    width: int = 24,
    height: int = 8,
    empty: str = "nothing yet",
    runbooks: tuple[str, ...] = (),
) -> Panel:
    """Return a table with a row for each agent, model or tool."""
    return Panel(
        title=title,
        description=description,
        unit=PIECES,
        shape=Shape.TABLE,
        columns=columns,
        empty=empty,
        width=width,
        height=height,
        runbooks=runbooks,
    )


def states(
    title: str,
    description: str,
    query: Query,
    *,
    width: int = 12,
    height: int = 5,
    runbooks: tuple[str, ...] = (),
) -> Panel:
    """Return a timeline of states: 1 is fine, 0 is not."""
    return Panel(
        title=title,
        description=description,
        unit=ITSELF,
        shape=Shape.STATES,
        queries=(query,),
        width=width,
        height=height,
        runbooks=runbooks,
    )
