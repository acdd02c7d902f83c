"""Model providers: their errors, their latency, and the load on them."""

from app.telemetry.catalogue import (
    AGENT,
    ANSWERS_REFUSED,
    LLM_DURATION,
    LLM_FIRST_TOKEN,
    LLM_OUTCOME,
    LLM_RETRIES,
    LLM_TOKENS,
    MODEL,
    PROVIDER,
    RETRY_REASON,
    RUNS,
    TOKEN_TYPE,
)
from dashboards.panels import (
    PART,
    PER_MINUTE,
    PIECES,
    SECONDS,
    Column,
    Dashboard,
    Row,
    graph,
    heat,
    row,
    table,
)
from dashboards.queries import (
    RANGE,
    Query,
    growth,
    per_minute,
    quantile,
    rate,
    share,
    spread,
    total,
)
from dashboards.rules.alert import Board
from dashboards.rules.models import BROKEN, TRIED
from dashboards.rules.values import Values

_ERRORS, _LIMITED = ("AgentLlmErrors",), ("AgentLlmRateLimited",)
_SLOW = ("AgentLlmFirstTokenSlow",)


def dashboard(values: Values) -> Dashboard:
    """Return the dashboard "Model providers"."""
    return Dashboard(
        Board.MODELS,
        "3 Model providers",
        "Do the providers answer, how fast, and how much do we use them?",
        (_ill(values), _fast(values), _ASKED, _ALL),
    )


def _of_calls(*outcomes: str) -> Query:
    """Return the share of each model's calls with that outcome."""
    return share(
        rate(LLM_DURATION, PROVIDER, MODEL, outcome=outcomes),
        rate(LLM_DURATION, PROVIDER, MODEL, outcome=TRIED),
    )


def _ill(values: Values) -> Row:
    return row(
        "Do they answer?",
        graph(
            "Model calls by outcome",
            "How calls to models end. Incomplete is an answer that was cut or broken and was "
            "refused; rate_limited is the provider's 429.",
            PER_MINUTE,
            per_minute(LLM_DURATION, LLM_OUTCOME),
            stacked=True,
            width=6,
            runbooks=_ERRORS + _LIMITED,
        ),
        graph(
            "Share of calls that failed",
            "Calls that failed, hung or returned a broken answer. Calls we cancelled do not count. "
            "Above the dashed line there is an alert.",
            PART,
            _of_calls(*BROKEN),
            alarms=(values["AgentLlmErrors"].number("share"),),
            width=6,
            runbooks=_ERRORS,
        ),
        graph(
            "Share of calls that were rate limited",
            "Calls that the provider refused with 429. Above the dashed line there is an alert.",
            PART,
            _of_calls("rate_limited"),
            alarms=(values["AgentLlmRateLimited"].number("share"),),
            width=6,
            runbooks=_LIMITED,
        ),
        graph(
            "Refusals",
            "Answers in which the model, or a rule of the agent, declines. Their runs are "
            "completed, so only this panel shows a model or a prompt that declines too much.",
            PER_MINUTE,
            per_minute(ANSWERS_REFUSED, AGENT),
            width=6,
        ),
    )


def _fast(values: Values) -> Row:
    return row(
        "How fast are they?",
        graph(
            "Duration of a call",
            "All but one in twenty calls of a model took less than this.",
            SECONDS,
            quantile(0.95, LLM_DURATION, PROVIDER, MODEL),
            width=8,
            runbooks=_ERRORS,
        ),
        graph(
            "Time to the first token",
            "How long readers of a stream wait for the first word; p95 of each model. Above the "
            "dashed line there is an alert.",
            SECONDS,
            quantile(0.95, LLM_FIRST_TOKEN, PROVIDER, MODEL),
            alarms=(values["AgentLlmFirstTokenSlow"].number("seconds"),),
            width=8,
            runbooks=_SLOW,
        ),
        heat(
            "Distribution of call durations",
            "Each column is a stretch of time; the darker a cell, the more calls took that long. "
            "Two bands are often two models, or a cache.",
            SECONDS,
            spread(LLM_DURATION),
            width=8,
        ),
    )


_ASKED = row(
    "Use of the models",
    graph(
        "Repeated calls",
        "Calls that were repeated after the first one failed, by the reason of the failure.",
        PER_MINUTE,
        per_minute(LLM_RETRIES, RETRY_REASON),
        stacked=True,
        width=8,
        runbooks=_ERRORS + _LIMITED,
    ),
    graph(
        "Model calls for each run",
        "Calls of models over runs that ended. It grows when agents loop or calls are repeated.",
        PIECES,
        share(rate(LLM_DURATION), rate(RUNS)).named("calls for each run"),
        width=8,
    ),
    graph(
        "Tokens each minute, by type",
        "cache_read is a part of input and reasoning a part of output, so the lines do not add up.",
        PIECES,
        per_minute(LLM_TOKENS, TOKEN_TYPE),
        width=8,
    ),
)

_CALLS = growth(LLM_DURATION, PROVIDER, MODEL)
_ALL = row(
    "Model by model",
    table(
        "All models",
        "One line for each model, over the time that is shown.",
        Column("calls", total(LLM_DURATION, PROVIDER, MODEL), PIECES),
        Column(
            "failed",
            share(growth(LLM_DURATION, PROVIDER, MODEL, outcome=BROKEN), _CALLS),
            PART,
        ),
        Column(
            "limited",
            share(growth(LLM_DURATION, PROVIDER, MODEL, outcome="rate_limited"), _CALLS),
            PART,
        ),
        Column("p95", quantile(0.95, LLM_DURATION, PROVIDER, MODEL, over=RANGE), SECONDS),
        Column(
            "first token p95", quantile(0.95, LLM_FIRST_TOKEN, PROVIDER, MODEL, over=RANGE), SECONDS
        ),
        Column("tokens in", total(LLM_TOKENS, PROVIDER, MODEL, type="input"), PIECES),
        Column("tokens out", total(LLM_TOKENS, PROVIDER, MODEL, type="output"), PIECES),
        runbooks=_ERRORS,
    ),
)
