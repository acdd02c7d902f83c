"""The dashboards, one module each, in the order in which they are numbered."""

from dashboards import grafana
from dashboards.boards import overview
from dashboards.rules.values import Values

DASHBOARDS = (overview.DASHBOARD,)


def files() -> dict[str, str]:
    """The JSON of every dashboard, by its path below dashboards/generated."""
    runbooks = Values.load()["links"].text("runbooks")
    return {f"grafana/{board.uid}.json": grafana.text(board, runbooks) for board in DASHBOARDS}
