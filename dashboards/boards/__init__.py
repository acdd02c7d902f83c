"""The dashboards, one module each, in the order in which they are numbered."""

from dashboards import grafana
from dashboards.boards import (
    api,
    background,
    cost,
    iterations,
    models,
    overview,
    runtime,
    slo,
    tools,
)
from dashboards.panels import Dashboard
from dashboards.rules.values import Values

_PAGES = (overview, iterations, models, tools, cost, api, background, runtime, slo)


def dashboards(values: Values) -> tuple[Dashboard, ...]:
    """Return all dashboards. Some panels draw thresholds and the objective from the values."""
    return tuple(page.dashboard(values) for page in _PAGES)


def files() -> dict[str, str]:
    """Return the JSON of every dashboard, by its path below dashboards/generated."""
    values = Values.load()
    runbooks = values["links"].text("runbooks")
    return {
        f"grafana/{board.uid}.json": grafana.text(board, runbooks) for board in dashboards(values)
    }
