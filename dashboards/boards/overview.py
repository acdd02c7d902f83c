"""The first page for the person on call: what is wrong, with which agent, and since when."""

from app.telemetry.catalogue import (
    AGENT,
    CONCURRENCY_LIMIT,
    DEADLINE,
    IN_FLIGHT,
    ITERATION_RATIO,
    LAST_SUCCESS,
    LIMIT_HITS,
    OUTCOME,
    PHASE,
    RUN_DURATION,
    RUNS,
    STATE,
    TIMEOUTS,
)
from dashboards.borrowed import ALERT_NAME, ALERTS, SEVERITY, UP
from dashboards.colours import ALL_IS_GOOD, FEW_ARE_FINE, FILLING, Steps, promised
from dashboards.panels import (
    DURATION,
    PART,
    PER_MINUTE,
    PIECES,
    SECONDS,
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
from dashboards.queries import (
    RANGE,
    beyond,
    growth,
    level,
    per_minute,
    quantile,
    rate,
    share,
    since,
    total,
)
from dashboards.rules.alert import Board
from dashboards.rules.promql import Without
from dashboards.rules.slo import BAD, COUNTED, objective
from dashboards.rules.values import Values

# From this edge of the buckets on, a run is near its limit.
NEAR = 0.8
# Background runs have their own slots and take none of these.
WITH_CALLER = Without(("background",))
# A run that times out always takes its whole deadline, so its duration means nothing.
ANSWERED = ("completed", "iteration_limit")


def dashboard(values: Values) -> Dashboard:
    """Return the dashboard "Overview"."""
    good = promised(objective(values).objective)
    return Dashboard(
        Board.OVERVIEW,
        "1 Overview",
        "Start here. Is anything wrong, with which agent, and since when?",
        (_now(good), _WORK, _ENDS, _WHY, _agents(good)),
    )


def _now(good: Steps) -> Row:
    return row(
        "Is anything wrong?",
        number(
            "Good runs",
            "The share of runs that were completed, in the time that is shown. Runs that their "
            "caller cancelled or left do not count.",
            PART,
            share(growth(RUNS, outcome="completed"), growth(RUNS, outcome=COUNTED)),
            steps=good,
            empty="no runs",
            runbooks=("AgentErrorBudgetBurn",),
        ),
        number(
            "Runs",
            "How many runs end each minute. Zero means that no request arrives, or that none gets "
            "an answer.",
            PER_MINUTE,
            per_minute(RUNS),
        ),
        number(
            "Stopped at the limit",
            "Runs that were stopped at their iteration limit, in the time that is shown. Their "
            "model still asked for tools instead of answering.",
            PIECES,
            total(LIMIT_HITS),
            steps=FEW_ARE_FINE,
            runbooks=("AgentIterationLimitHits",),
        ),
        number(
            "Timed out",
            "Runs that did not meet their deadline, in the time that is shown.",
            PIECES,
            total(TIMEOUTS),
            steps=FEW_ARE_FINE,
            runbooks=("AgentRunTimeouts",),
        ),
        number(
            "Slots in use",
            "Running runs, over how many may run at the same time. At 100 % new runs wait.",
            PART,
            share(
                level("sum", IN_FLIGHT, state="running", mode=WITH_CALLER),
                level("sum", CONCURRENCY_LIMIT),
            ),
            steps=FILLING,
            runbooks=("AgentSaturated",),
        ),
        number(
            "Instances up",
            "Processes that Prometheus reaches, as a share of those that it scrapes.",
            PART,
            share(level("sum", UP), level("count", UP)),
            steps=ALL_IS_GOOD,
            runbooks=("AgentServiceDown", "AgentServiceAbsent"),
        ),
    )


_WORK = row(
    "Alerts and runs in flight",
    table(
        "Firing alerts",
        "Each name links to a page that explains it and what to do.",
        Column(
            "firing",
            level("count", ALERTS, ALERT_NAME, SEVERITY, AGENT, alertstate="firing"),
            PIECES,
        ),
        width=12,
        empty="none",
        runbooks=("AgentWatchdog",),
    ),
    graph(
        "Runs in flight",
        "Queued and running runs. The dashed line is how many may run at the same time. "
        "Background runs have their own slots.",
        PIECES,
        level("sum", IN_FLIGHT, STATE, mode=WITH_CALLER),
        limits=(level("sum", CONCURRENCY_LIMIT).named("limit"),),
        runbooks=("AgentSaturated", "AgentQueueBacklog", "AgentRunStuck"),
    ),
)

_ENDS = row(
    "How runs end",
    graph(
        "Runs by outcome",
        "Every run ends with one of these outcomes. Green has an answer; orange was stopped at "
        "its iteration limit, red at its deadline.",
        PER_MINUTE,
        per_minute(RUNS, OUTCOME),
        stacked=True,
        runbooks=("AgentErrorBudgetBurn",),
    ),
    graph(
        "Bad runs by agent",
        "The share of each agent's runs that failed, timed out, were stopped at the limit or "
        "were refused. It shows whether one agent has a problem or all of them.",
        PART,
        share(rate(RUNS, AGENT, outcome=BAD), rate(RUNS, AGENT, outcome=COUNTED)),
        most=1,
        runbooks=("AgentErrorBudgetBurn", "AgentNoSuccess"),
    ),
)

_WHY = row(
    "Why runs end badly",
    graph(
        "What runs were waiting for at their deadline",
        "A slot (queue), a model (llm), a tool, or anything else (other).",
        PER_MINUTE,
        per_minute(TIMEOUTS, PHASE),
        stacked=True,
        runbooks=("AgentRunTimeouts",),
    ),
    bars(
        "Runs near their iteration limit",
        "The share of each agent's runs that used more than 80 % of their iterations, in the time "
        "that is shown. It grows before runs are stopped.",
        PART,
        beyond(NEAR, ITERATION_RATIO, AGENT),
        most=1,
        runbooks=("AgentIterationsNearLimit",),
    ),
    graph(
        "Time to an answer",
        "All but one in twenty answers of an agent took less than this. The dashed lines are the "
        "agents' deadlines. Runs without an answer are not in it; background runs are, "
        "and they have a deadline of their own.",
        SECONDS,
        quantile(0.95, RUN_DURATION, AGENT, outcome=ANSWERED),
        limits=(level("max", DEADLINE, AGENT).named("deadline {{agent}}"),),
        width=24,
        runbooks=("AgentRunTimeouts",),
    ),
)


def _agents(good: Steps) -> Row:
    return row("Agent by agent", _table(good))


def _table(good: Steps) -> Panel:
    completed = growth(RUNS, AGENT, outcome="completed")
    return table(
        "All agents",
        "One line for each agent, over the time that is shown.",
        Column("runs", total(RUNS, AGENT), PIECES),
        Column("good", share(completed, growth(RUNS, AGENT, outcome=COUNTED)), PART, good),
        Column("stopped at limit", total(LIMIT_HITS, AGENT), PIECES, FEW_ARE_FINE),
        Column("timed out", total(TIMEOUTS, AGENT), PIECES, FEW_ARE_FINE),
        Column("near limit", beyond(NEAR, ITERATION_RATIO, AGENT), PART),
        Column("p95", quantile(0.95, RUN_DURATION, AGENT, over=RANGE, outcome=ANSWERED), SECONDS),
        Column("deadline", level("max", DEADLINE, AGENT), SECONDS),
        Column("last answer, ago", since(LAST_SUCCESS, AGENT), DURATION),
        runbooks=("AgentNoSuccess",),
    )
