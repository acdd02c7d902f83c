"""The cost of agents, the cost of runs without an answer, and models without a price."""

from app.telemetry.catalogue import (
    AGENT,
    LLM_COST,
    LLM_TOKENS,
    LLM_UNPRICED,
    MODEL,
    PROVIDER,
    RUNS,
    WASTED,
    WASTED_TOKENS,
)
from dashboards.colours import FEW_ARE_FINE
from dashboards.panels import (
    DOLLARS,
    PART,
    PIECES,
    Column,
    Dashboard,
    bars,
    graph,
    number,
    row,
    table,
)
from dashboards.queries import growth, per_hour, per_minute, rate, share, total
from dashboards.rules.alert import Board
from dashboards.rules.values import Values

_SPIKE, _UNPRICED = ("AgentSpendSpike",), ("AgentUnpricedCalls",)

_SPENT = row(
    "What was spent",
    number(
        "Spent",
        "US dollars for calls of priced models, in the time that is shown. From list prices, not "
        "from a bill.",
        DOLLARS,
        growth(LLM_COST),
        width=6,
    ),
    number(
        "Cost of a run",
        "Mean cost of a run, over the time that is shown. Runs of models without a price "
        "count as free.",
        DOLLARS,
        share(growth(LLM_COST), growth(RUNS)),
        width=6,
    ),
    number(
        "Calls without a price",
        "Calls of models that are not in the price table, in the time that is shown. Their cost "
        "is missing on this page.",
        PIECES,
        total(LLM_UNPRICED),
        steps=FEW_ARE_FINE,
        empty="none",
        width=6,
        runbooks=_UNPRICED,
    ),
    number(
        "Tokens of runs without an answer",
        "Input and output tokens of these runs, in the time that is shown.",
        PIECES,
        total(WASTED_TOKENS),
        width=6,
    ),
)

_WHO = row(
    "Spending",
    graph(
        "Spending by agent",
        "US dollars an hour. An agent that costs several times its usual hour is an alert.",
        DOLLARS,
        per_hour(LLM_COST, AGENT),
        stacked=True,
        runbooks=_SPIKE,
    ),
    graph(
        "Spending by model",
        "US dollars an hour, by the model that was asked.",
        DOLLARS,
        per_hour(LLM_COST, MODEL),
        stacked=True,
        runbooks=_SPIKE,
    ),
    graph(
        "Cost of a run, by agent",
        "Mean cost of one run. It grows with iterations, with longer prompts and with more "
        "expensive models.",
        DOLLARS,
        share(rate(LLM_COST, AGENT), rate(RUNS, AGENT)),
        runbooks=_SPIKE,
    ),
    bars(
        "Calls without a price, by model",
        "Models that are not in the price table, in the time that is shown.",
        PIECES,
        total(LLM_UNPRICED, PROVIDER, MODEL),
        runbooks=_UNPRICED,
    ),
)

_FOR = row(
    "Tokens and agents",
    graph(
        "Input read from the cache, by model",
        "The share of the input that the provider had in its cache, and that costs less.",
        PART,
        share(rate(LLM_TOKENS, MODEL, type="cache_read"), rate(LLM_TOKENS, MODEL, type="input")),
        most=1,
    ),
    graph(
        "Tokens of runs without an answer, by outcome",
        "Tokens that were paid for, each minute, by how the runs ended.",
        PIECES,
        per_minute(WASTED_TOKENS, WASTED),
        stacked=True,
    ),
    table(
        "All agents",
        "One line for each agent, over the time that is shown.",
        Column("spent", growth(LLM_COST, AGENT), DOLLARS),
        Column("cost of a run", share(growth(LLM_COST, AGENT), growth(RUNS, AGENT)), DOLLARS),
        Column("tokens in", total(LLM_TOKENS, AGENT, type="input"), PIECES),
        Column("tokens out", total(LLM_TOKENS, AGENT, type="output"), PIECES),
        Column("tokens without an answer", total(WASTED_TOKENS, AGENT), PIECES),
        Column("calls without a price", total(LLM_UNPRICED, AGENT), PIECES, FEW_ARE_FINE),
        runbooks=_SPIKE,
    ),
)


def dashboard(values: Values) -> Dashboard:
    """Return the dashboard "Cost"."""
    return Dashboard(
        Board.COST,
        "5 Cost",
        "What do the agents cost, how much of it brought no answer, and what has no price?",
        (_SPENT, _WHO, _FOR),
        since="now-24h",
    )
