"""The objective of runs, as data, and the rules on the burn rate of its error budget.

A run is bad if the service, its agent or its model is to blame. Runs that their caller ended
(cancelled, disconnected) or that need a human (interrupted) do not count.
"""

from dataclasses import dataclass

from app.telemetry.catalogue import AGENT, RUNS
from dashboards.rules.alert import Alert, Board, Group, Record, Severity
from dashboards.rules.promql import rate, share
from dashboards.rules.values import Values

BAD = ("failed", "timeout", "iteration_limit", "rejected")
COUNTED = ("completed", *BAD)


@dataclass(frozen=True, slots=True)
class Objective:
    """An objective: this share of the counted runs is good, over this window."""

    name: str
    objective: float
    window: str

    @property
    def budget(self) -> float:
        """The share of runs that may be bad."""
        return round(1 - self.objective, 9)


@dataclass(frozen=True, slots=True)
class Burn:
    """A burn rate of the budget, over a long window and still over a short one.

    At a burn rate of 1 the budget lasts exactly for the window of the objective.
    """

    pace: float
    long: str
    short: str
    lasts: str
    severity: Severity


BURNS = (
    Burn(14.4, "1h", "5m", "2m", Severity.CRITICAL),
    Burn(6, "6h", "30m", "15m", Severity.CRITICAL),
    Burn(3, "1d", "2h", "1h", Severity.WARNING),
    Burn(1, "3d", "6h", "3h", Severity.WARNING),
)


def objective(values: Values) -> Objective:
    """Return the objective of runs from the values. Raises ValueError for an impossible one."""
    knobs = values["slo.runs"]
    promised = knobs.number("objective")
    if not 0 < promised < 1:
        raise ValueError(f"The objective of runs is a share between 0 and 1, not {promised}.")
    return Objective("runs", promised, knobs.text("window"))


def bad_share(window: str) -> str:
    """Return the name of the recorded share of bad runs. The dashboards use it too."""
    return f"agent:runs_bad:ratio_rate{window}"


def group(values: Values) -> Group:
    """Return the recorded shares and their alerts. In one group, alerts read the newest shares."""
    windows = dict.fromkeys(window for burn in BURNS for window in (burn.short, burn.long))
    records = [_record(values, window) for window in windows]
    promise = objective(values)
    return Group("agent-slo", (*records, *(_alert(values, promise, burn) for burn in BURNS)))


def _record(values: Values, window: str) -> Record:
    over = values.span(window)
    bad, counted = (rate(RUNS, over, AGENT, outcome=which) for which in (BAD, COUNTED))
    return Record(bad_share(window), share(bad, f"({counted} > 0)"))


def _alert(values: Values, promise: Objective, burn: Burn) -> Alert:
    most = f"({burn.pace:g} * {promise.budget:g})"
    return Alert(
        name="AgentErrorBudgetBurn",
        expr=f"{bad_share(burn.long)} > {most}\nand\n{bad_share(burn.short)} > {most}",
        lasts=values.span(burn.lasts),
        severity=burn.severity,
        board=Board.SLO,
        summary=f"{{{{ $labels.agent }}}} burns its error budget {burn.pace:g} times too fast",
        description=(
            f"{{{{ $value | humanizePercentage }}}} of the runs of {{{{ $labels.agent }}}} were "
            f"bad in the last {burn.long}, and they still are. {promise.budget:.2%} of the runs of "
            f"{promise.window} may be; at this burn rate that is used up in "
            f"{_gone_in(promise, burn)}."
        ),
        labels={"slo": promise.name, "long": burn.long, "short": burn.short},
    )


def _gone_in(promise: Objective, burn: Burn) -> str:
    """Return how long the whole budget lasts at the burn rate of the rule."""
    hours = int(promise.window.removesuffix("d")) * 24 / burn.pace
    return f"{hours:.0f} hours" if hours < 72 else f"{hours / 24:.0f} days"
