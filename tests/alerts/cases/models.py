"""Cases of the alerts on model providers and what they cost."""

from app.telemetry import catalogue as c
from tests.alerts.promtool import Given, fires, given, silent

_MODEL = {"provider": "openai", "model": "gpt-4.1-mini"}
_AGENT = {"agent": "orders", **_MODEL}


def _calls(outcome: str, values: str) -> Given:
    return given(c.LLM_DURATION, values, "_count", outcome=outcome, **_AGENT)


def _first_token(**by_edge: str) -> tuple[Given, ...]:
    edges = {"le8": "8.0", "le15": "15.0", "inf": "+Inf"}
    return tuple(
        given(c.LLM_FIRST_TOKEN, values, "_bucket", le=edges[edge], **_AGENT)
        for edge, values in by_edge.items()
    )


def _cost(values: str) -> Given:
    return given(c.LLM_COST, values, **_AGENT)


CASES = (
    fires(
        "AgentLlmErrors",
        "one call in five fails",
        _calls("completed", "0+8x60"),
        _calls("failed", "0+1x60"),
        _calls("timeout", "0+1x60"),
        at="20m",
        labels=_MODEL,
        summary="gpt-4.1-mini of openai fails",
        description="20% of the calls of gpt-4.1-mini failed, hung or came back broken in the "
        "last 5m.",
    ),
    silent(
        "AgentLlmErrors",
        "one call in ten fails, many are broken off, and many are rate limited",
        _calls("completed", "0+8x60"),
        _calls("failed", "0+1x60"),
        _calls("rate_limited", "0+1x60"),
        _calls("cancelled", "0+9x60"),
        at="20m",
    ),
    silent(
        "AgentLlmErrors",
        "every call fails, but there were four",
        _calls("failed", "0x10 1 2 3 4x40"),
        at="16m",
    ),
    fires(
        "AgentLlmRateLimited",
        "one call in ten is rate limited",
        _calls("completed", "0+9x60"),
        _calls("rate_limited", "0+1x60"),
        at="20m",
        labels=_MODEL,
        summary="openai limits our rate for gpt-4.1-mini",
        description="10% of the calls of gpt-4.1-mini were answered with a rate limit in the last "
        "5m.",
    ),
    silent(
        "AgentLlmRateLimited",
        "one call in twenty is rate limited: at the threshold, not above it",
        _calls("completed", "0+19x60"),
        _calls("rate_limited", "0+1x60"),
        at="20m",
    ),
    silent(
        "AgentLlmRateLimited",
        "two calls are rate limited, again and again",
        _calls("completed", "0+0x60"),
        _calls("rate_limited", "0 1 2 2 2 2 3 4 4 4 4 5 6 6 6 6 7 8 8 8 8 9 10 10 10 10"),
        at="20m",
    ),
    fires(
        "AgentLlmFirstTokenSlow",
        "one call in ten waits for 8 to 15 s",
        *_first_token(le8="0+9x60", le15="0+10x60", inf="0+10x60"),
        at="25m",
        labels=_MODEL,
        summary="gpt-4.1-mini of openai is slow to send its first token",
        description="One streamed call in twenty of gpt-4.1-mini waited 11.5s or longer for its "
        "first token, in the last 10m.",
    ),
    silent(
        "AgentLlmFirstTokenSlow",
        "one call in forty waits so long",
        *_first_token(le8="0+39x60", le15="0+40x60", inf="0+40x60"),
        at="25m",
    ),
    fires(
        "AgentSpendSpike",
        "ten times the usual, for an hour",
        _cost("0+0.1x300 30+1x24"),
        at="1580m",
        every="5m",
        labels={"agent": "orders"},
        summary="orders spends far more than usual",
        description="orders spent 12.00 US dollars in the last 1h, more than 3 times its usual.",
    ),
    fires(
        "AgentSpendSpike",
        "an agent that never cost anything begins to",
        _cost("0x12 0+1x18"),
        at="140m",
        every="5m",
        labels={"agent": "orders"},
        summary="orders spends far more than usual",
        description="orders spent 12.00 US dollars in the last 1h, more than 3 times its usual.",
    ),
    silent(
        "AgentSpendSpike",
        "ten times the usual, which is still less than five dollars",
        _cost("0+0.01x300 3+0.1x24"),
        at="1580m",
        every="5m",
    ),
    silent(
        "AgentSpendSpike",
        "twice the usual",
        _cost("0+0.5x300 150+1x24"),
        at="1580m",
        every="5m",
    ),
    fires(
        "AgentUnpricedCalls",
        "a model without a price is asked",
        given(c.LLM_UNPRICED, "0+1x90", **_AGENT),
        at="70m",
        labels=_MODEL,
        summary="gpt-4.1-mini has no price",
        description="60 calls of gpt-4.1-mini of openai were not priced in the last 1h: costs are "
        "higher than shown.",
    ),
    silent(
        "AgentUnpricedCalls",
        "it was asked yesterday",
        given(c.LLM_UNPRICED, "9x90", **_AGENT),
        at="70m",
    ),
)
