"""Alerts on model providers: they fail, limit us, are slow, or cost too much."""

from app.telemetry.catalogue import (
    AGENT,
    LLM_COST,
    LLM_DURATION,
    LLM_FIRST_TOKEN,
    LLM_UNPRICED,
    MODEL,
    PROVIDER,
)
from dashboards.rules.alert import Alert, Board, Severity
from dashboards.rules.promql import Without, increase, quantile, share
from dashboards.rules.values import Knobs

BROKEN = ("failed", "timeout", "incomplete")
# Calls that our side cancelled are no errors of the provider.
TRIED = Without(("cancelled", "interrupted"))


def llm_errors(knobs: Knobs) -> Alert:
    """A model's calls fail, hang, or come back broken."""
    window = knobs.span("window")
    tried = increase(LLM_DURATION, window, PROVIDER, MODEL, outcome=TRIED)
    broken = increase(LLM_DURATION, window, PROVIDER, MODEL, outcome=BROKEN)
    return Alert(
        name=knobs.name,
        expr=(
            f"{share(broken, tried)} > {knobs.number('share'):g}\n"
            f"and\n{tried} >= {knobs.number('calls'):g}"
        ),
        lasts=knobs.span("for"),
        severity=Severity.CRITICAL,
        board=Board.MODELS,
        summary="{{ $labels.model }} of {{ $labels.provider }} fails",
        description=(
            "{{ $value | humanizePercentage }} of the calls of {{ $labels.model }} failed, hung or "
            f"came back broken in the last {window}."
        ),
    )


def llm_rate_limited(knobs: Knobs) -> Alert:
    """A provider answers 429: we, or another user of our key, send too many requests."""
    window = knobs.span("window")
    tried = increase(LLM_DURATION, window, PROVIDER, MODEL, outcome=TRIED)
    limited = increase(LLM_DURATION, window, PROVIDER, MODEL, outcome="rate_limited")
    return Alert(
        name=knobs.name,
        expr=(
            f"{share(limited, tried)} > {knobs.number('share'):g}\n"
            f"and\n{limited} >= {knobs.number('calls'):g}"
        ),
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.MODELS,
        summary="{{ $labels.provider }} limits our rate for {{ $labels.model }}",
        description=(
            "{{ $value | humanizePercentage }} of the calls of {{ $labels.model }} were answered "
            f"with a rate limit in the last {window}."
        ),
    )


def llm_first_token_slow(knobs: Knobs) -> Alert:
    """Readers of streams wait long for the first token."""
    window = knobs.span("window")
    slow = quantile(0.95, LLM_FIRST_TOKEN, window, PROVIDER, MODEL)
    return Alert(
        name=knobs.name,
        expr=f"{slow} > {knobs.number('seconds'):g}",
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.MODELS,
        summary="{{ $labels.model }} of {{ $labels.provider }} is slow to send its first token",
        description=(
            "One streamed call in twenty of {{ $labels.model }} waited "
            f"{{{{ $value | humanizeDuration }}}} or longer for its first token, in the last "
            f"{window}."
        ),
    )


def spend_spike(knobs: Knobs) -> Alert:
    """An agent costs much more in an hour than in a usual hour of the day before."""
    window = knobs.span("window")
    usual_over = f"{knobs.span('usual_over')} offset {window}"
    spent = increase(LLM_COST, window, AGENT)
    hours = knobs.seconds("usual_over") / knobs.seconds("window")
    usual = increase(LLM_COST, usual_over, AGENT)
    return Alert(
        name=knobs.name,
        expr=(
            f"{spent}\n> (\n  {knobs.number('times'):g} / {hours:g} * {usual}\n"
            f"  or\n  0 * {spent}\n)\nand\n{spent} > {knobs.number('usd'):g}"
        ),
        lasts=knobs.span("for"),
        severity=Severity.WARNING,
        board=Board.COST,
        summary="{{ $labels.agent }} spends far more than usual",
        description=(
            '{{ $labels.agent }} spent {{ $value | printf "%.2f" }} US dollars in the last '
            f"{window}, more than {knobs.number('times'):g} times its usual."
        ),
    )


def unpriced_calls(knobs: Knobs) -> Alert:
    """A model without a price: every sum lacks its cost."""
    window = knobs.span("window")
    unpriced = increase(LLM_UNPRICED, window, PROVIDER, MODEL)
    return Alert(
        name=knobs.name,
        expr=f"{unpriced} > {knobs.number('calls'):g}",
        lasts=knobs.span("for"),
        severity=Severity.INFO,
        board=Board.COST,
        summary="{{ $labels.model }} has no price",
        description=(
            '{{ $value | printf "%.0f" }} calls of {{ $labels.model }} of {{ $labels.provider }} '
            f"were not priced in the last {window}: costs are higher than shown."
        ),
    )


ALERTS = {
    "AgentLlmErrors": llm_errors,
    "AgentLlmRateLimited": llm_rate_limited,
    "AgentLlmFirstTokenSlow": llm_first_token_slow,
    "AgentSpendSpike": spend_spike,
    "AgentUnpricedCalls": unpriced_calls,
}
