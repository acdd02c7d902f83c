"""Iterations of runs, the limits that stop them, and the phase of runs that time out."""

from app.telemetry.catalogue import (
    AGENT,
    DEADLINE,
    ITERATION_LIMIT,
    ITERATION_RATIO,
    ITERATIONS,
    LIMIT_HITS,
    LONGEST_DEADLINE,
    OLDEST_AGE,
    PHASE,
    RUN_DURATION,
    RUN_TOOL_CALLS,
    RUNS,
    STATE,
    TIMEOUTS,
    WASTED,
    WASTED_SECONDS,
    WASTED_TOKENS,
)
from dashboards.boards.overview import ANSWERED, NEAR
from dashboards.panels import (
    PART,
    PER_MINUTE,
    PIECES,
    SECONDS,
    Dashboard,
    Row,
    bars,
    graph,
    heat,
    row,
)
from dashboards.queries import (
    Query,
    beyond,
    level,
    per_minute,
    quantile,
    rate,
    share,
    spread,
    total,
)
from dashboards.rules.alert import Board
from dashboards.rules.slo import COUNTED
from dashboards.rules.values import Values

_HITS = ("AgentIterationLimitHits",)
_NEAR = ("AgentIterationsNearLimit",)
_TIMEOUTS = ("AgentRunTimeouts",)


def dashboard(values: Values) -> Dashboard:
    """Return the dashboard "Iterations and timeouts"."""
    return Dashboard(
        Board.ITERATIONS,
        "2 Iterations and timeouts",
        "Do runs come near their limits? What stops them there, and what did it cost?",
        (_need(values), _limit(values), _deadline(values), _LOST),
    )


def _of_runs(outcome: str) -> Query:
    """Return the share of each agent's runs with that outcome."""
    return share(rate(RUNS, AGENT, outcome=outcome), rate(RUNS, AGENT, outcome=COUNTED))


def _need(values: Values) -> Row:
    return row(
        "How many iterations runs need",
        heat(
            "Iterations of runs",
            "An iteration is a turn in which the model asked for tools. Each column is a stretch "
            "of time; the darker a cell, the more runs needed that many.",
            PIECES,
            spread(ITERATIONS),
        ),
        graph(
            "Iterations and limit, by agent",
            "All but one in twenty runs of an agent needed fewer iterations than this. The dashed "
            "lines are the agents' limits.",
            PIECES,
            quantile(0.95, ITERATIONS, AGENT),
            limits=(level("max", ITERATION_LIMIT, AGENT).named("limit {{agent}}"),),
            runbooks=_NEAR,
        ),
        graph(
            "Iterations as a share of the limit",
            "Iterations over the run's own limit, which a request may lower; p95 of each agent. "
            "Above the dashed line there is a warning.",
            PART,
            quantile(0.95, ITERATION_RATIO, AGENT),
            alarms=(values["AgentIterationsNearLimit"].number("share"),),
            most=1,
            runbooks=_NEAR,
        ),
        bars(
            "Runs near their limit",
            "The share of runs that used more than 80 % of their iterations, in the time that is "
            "shown.",
            PART,
            beyond(NEAR, ITERATION_RATIO, AGENT),
            most=1,
            runbooks=_NEAR,
        ),
    )


def _limit(values: Values) -> Row:
    return row(
        "Stopped at the limit",
        graph(
            "Runs stopped at their limit",
            "Runs whose model still asked for tools when no iteration was left.",
            PER_MINUTE,
            per_minute(LIMIT_HITS, AGENT),
            width=8,
            runbooks=_HITS,
        ),
        graph(
            "Share of runs stopped at their limit",
            "Stopped runs over all runs of an agent. Above the dashed line there is an alert.",
            PART,
            _of_runs("iteration_limit"),
            alarms=(values["AgentIterationLimitHits"].number("share"),),
            width=8,
            runbooks=_HITS,
        ),
        graph(
            "Tool calls of runs",
            "All but one in twenty runs made fewer tool calls than this. Many calls in few "
            "iterations are parallel calls; one call in each of many is often a loop.",
            PIECES,
            quantile(0.95, RUN_TOOL_CALLS, AGENT),
            width=8,
            runbooks=_HITS,
        ),
    )


def _deadline(values: Values) -> Row:
    return row(
        "Timeouts",
        graph(
            "What runs were waiting for at their deadline",
            "A slot (queue), a model (llm), a tool, or anything else (other).",
            PER_MINUTE,
            per_minute(TIMEOUTS, PHASE),
            stacked=True,
            runbooks=_TIMEOUTS,
        ),
        graph(
            "Share of runs that timed out",
            "The share of an agent's runs that missed their deadline. Above the dashed line "
            "there is an alert.",
            PART,
            _of_runs("timeout"),
            alarms=(values["AgentRunTimeouts"].number("share"),),
            runbooks=_TIMEOUTS,
        ),
        bars(
            "Timeouts, by agent and phase",
            "Which agent was waiting for what, in the time that is shown.",
            PIECES,
            total(TIMEOUTS, AGENT, PHASE).put_into("{} > 0"),
            width=8,
            runbooks=_TIMEOUTS,
        ),
        graph(
            "Time to an answer and deadline",
            "All but one in twenty answers of an agent took less than this. The dashed lines are "
            "the agents' deadlines. Runs without an answer are not in it; background runs "
            "are, and they have a deadline of their own.",
            SECONDS,
            quantile(0.95, RUN_DURATION, AGENT, outcome=ANSWERED),
            limits=(level("max", DEADLINE, AGENT).named("deadline {{agent}}"),),
            width=8,
            runbooks=_TIMEOUTS,
        ),
        graph(
            "Oldest run in flight",
            "How long the oldest run has been queued or running. No run should be older than the "
            "longest possible deadline, which is the dashed line.",
            SECONDS,
            level("max", OLDEST_AGE, STATE),
            limits=(level("max", LONGEST_DEADLINE).named("longest deadline"),),
            wide=True,
            width=8,
            runbooks=("AgentRunStuck", "AgentQueueBacklog"),
        ),
    )


_LOST = row(
    "Work of runs without an answer",
    graph(
        "Time of runs without an answer",
        "Seconds of work, each minute, that ended without an answer. 60 is one run that works all "
        "the time without an answer.",
        "suffix: s/min",
        per_minute(WASTED_SECONDS, WASTED),
        stacked=True,
        runbooks=_TIMEOUTS,
    ),
    graph(
        "Tokens of runs without an answer",
        "Tokens that were paid for, each minute, by runs that ended without an answer.",
        PIECES,
        per_minute(WASTED_TOKENS, WASTED),
        stacked=True,
    ),
)
