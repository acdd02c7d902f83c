"""The objective: the remaining error budget of each agent, and its burn rate."""

from app.telemetry.catalogue import AGENT, OUTCOME, RUNS
from dashboards.borrowed import WINDOWS, bad_runs
from dashboards.colours import GREEN, ORANGE, RED, Steps, promised
from dashboards.panels import (
    PART,
    PER_MINUTE,
    PIECES,
    Column,
    Dashboard,
    Panel,
    Row,
    bars,
    graph,
    number,
    row,
    table,
)
from dashboards.queries import Query, growth, level, per_minute, share, total
from dashboards.rules.alert import Board
from dashboards.rules.slo import BAD, BURNS, COUNTED, Objective, objective
from dashboards.rules.values import Values, milliseconds

_RUNBOOK = ("AgentErrorBudgetBurn",)
_LEFT: Steps = ((0, RED), (0.1, ORANGE), (0.5, GREEN))


def dashboard(values: Values) -> Dashboard:
    """Return the dashboard "SLO and error budget"."""
    promise = objective(values)
    return Dashboard(
        Board.SLO,
        "9 SLO and error budget",
        f"The objective: {_percent(promise.objective)} of an agent's runs are good, over "
        f"{promise.window}. How much of the error budget is left?",
        (_budget(promise), _pace(promise), _SPENT),
        since="now-24h",
    )


def _percent(part: float) -> str:
    return f"{100 * part:.4g} %"


def _budget(promise: Objective) -> Row:
    window = promise.window
    return row(
        "Remaining budget",
        number(
            "Good runs",
            f"The share of runs that were good, over {window}. The objective is "
            f"{_percent(promise.objective)}.",
            PART,
            share(
                growth(RUNS, over=window, outcome="completed"),
                growth(RUNS, over=window, outcome=COUNTED),
            ),
            steps=promised(promise.objective),
            empty="no runs",
            width=6,
            height=8,
            runbooks=_RUNBOOK,
        ),
        number(
            "Bad runs",
            f"Runs that failed, timed out, were stopped at their limit or were refused, over "
            f"{window}.",
            PIECES,
            total(RUNS, over=window, outcome=BAD),
            width=6,
            height=8,
            runbooks=_RUNBOOK,
        ),
        bars(
            "Remaining error budget, by agent",
            f"How much of the bad runs that the objective allows over {window} is not used yet. "
            "Below zero the objective is missed.",
            PART,
            _left(promise),
            steps=_LEFT,
            most=1,
            runbooks=_RUNBOOK,
        ),
    )


def _left(promise: Objective) -> Query:
    bad = share(
        growth(RUNS, AGENT, over=promise.window, outcome=BAD),
        growth(RUNS, AGENT, over=promise.window, outcome=COUNTED),
    )
    return bad.put_into(f"1 - {{}} / {promise.budget:g}")


def _pace(promise: Objective) -> Row:
    return row(
        "Burn rate",
        *(_burn(promise, window) for window in ("1h", "6h")),
        _windows(promise),
    )


def _burn(promise: Objective, window: str) -> Panel:
    paces = [burn.pace for burn in BURNS if burn.long == window]
    return graph(
        f"Burn rate over {window}, by agent",
        f"At a burn rate of 1 the budget lasts for exactly {promise.window}. Above the dashed line "
        "an alert pages the person on call.",
        "suffix: x",
        level("max", bad_runs(window), AGENT).put_into(f"{{}} / {promise.budget:g}"),
        alarms=tuple(paces),
        runbooks=_RUNBOOK,
    )


def _windows(promise: Objective) -> Panel:
    """Return a column for each window. It turns red at the burn rate of the window's alert."""
    paces = {window: burn.pace for burn in BURNS for window in (burn.short, burn.long)}
    return table(
        "Bad runs, by window",
        "The share of bad runs, over each window of the alerts. Red is more than an alert allows; "
        "an alert needs two red windows.",
        *(
            Column(
                window,
                level("max", bad_runs(window), AGENT),
                PART,
                ((0, GREEN), (round(paces[window] * promise.budget, 9), RED)),
            )
            for window in sorted(WINDOWS, key=milliseconds)
        ),
        runbooks=_RUNBOOK,
    )


_SPENT = row(
    "Use of the budget",
    graph(
        "Bad runs by outcome",
        "Which outcomes use the budget.",
        PER_MINUTE,
        per_minute(RUNS, OUTCOME, outcome=BAD),
        stacked=True,
        runbooks=_RUNBOOK,
    ),
    graph(
        "Bad runs by agent",
        "Which agents use the budget.",
        PER_MINUTE,
        per_minute(RUNS, AGENT, outcome=BAD),
        stacked=True,
        runbooks=_RUNBOOK,
    ),
)
