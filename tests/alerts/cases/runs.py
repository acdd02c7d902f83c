"""Cases of the alerts on how runs end."""

from app.telemetry import catalogue as c
from tests.alerts.promtool import INSTANCE, Given, fires, given, silent


def ended(outcome: str, values: str, agent: str = "orders") -> Given:
    """Runs that ended so."""
    return given(c.RUNS, values, agent=agent, mode="sync", outcome=outcome)


def _hits(values: str) -> tuple[Given, Given]:
    return (ended("iteration_limit", values), given(c.LIMIT_HITS, values, agent="orders"))


def _ratios(at_most_80: str, at_most_90: str, all_: str) -> tuple[Given, ...]:
    edges = {"0.8": at_most_80, "0.9": at_most_90, "1.0": all_, "+Inf": all_}
    buckets = [
        given(c.ITERATION_RATIO, values, "_bucket", agent="orders", le=le)
        for le, values in edges.items()
    ]
    return (*buckets, given(c.ITERATION_RATIO, all_, "_count", agent="orders"))


def _timeouts(phase: str, values: str) -> Given:
    return given(c.TIMEOUTS, values, agent="orders", mode="sync", phase=phase)


def _age(state: str, values: str) -> Given:
    return given(c.OLDEST_AGE, values, agent="orders", state=state)


_LONGEST = given(c.LONGEST_DEADLINE, "300x60", agent="orders")
_DEADLINE = given(c.DEADLINE, "30x60", agent="orders")
_NEVER = given(c.LAST_SUCCESS, "0x120", agent="orders")

CASES = (
    fires(
        "AgentIterationLimitHits",
        "one run in ten is stopped",
        ended("completed", "0+9x60"),
        *_hits("0+1x60"),
        at="30m",
        labels={"agent": "orders"},
        summary="orders is stopped at its iteration limit",
        description="10% of the runs of orders were stopped at their iteration limit in the last "
        "15m.",
    ),
    silent(
        "AgentIterationLimitHits",
        "one run in twenty is stopped: at the threshold, not above it",
        ended("completed", "0+19x60"),
        *_hits("0+1x60"),
        at="30m",
    ),
    silent(
        "AgentIterationLimitHits",
        "two runs were stopped, which is half of all, but only two",
        ended("completed", "0x20 1 2x40"),
        *_hits("0x20 1 2x40"),
        at="28m",
    ),
    fires(
        "AgentIterationsNearLimit",
        "one run in ten uses between 80 and 90 % of its limit",
        *_ratios("0+9x90", "0+10x90", "0+10x90"),
        at="60m",
        labels={"agent": "orders"},
        summary="orders comes close to its iteration limit",
        description="One run in twenty of orders used 85% or more of its iteration limit in the "
        "last 30m.",
    ),
    silent(
        "AgentIterationsNearLimit",
        "one run in forty comes close",
        *_ratios("0+39x90", "0+40x90", "0+40x90"),
        at="60m",
    ),
    silent(
        "AgentIterationsNearLimit",
        "every run comes close, but there were few",
        *_ratios("0x120", "0x40 5x80", "0x40 5x80"),
        at="60m",
    ),
    fires(
        "AgentRunTimeouts",
        "one run in ten times out in a tool; one, long ago, waited for its model",
        ended("completed", "0+9x60"),
        ended("timeout", "0+1x60"),
        _timeouts("tool", "0+1x60"),
        _timeouts("llm", "0 1x60"),
        at="30m",
        labels={"agent": "orders", "phase": "tool"},
        summary="Runs of orders time out in phase tool",
        description="15 runs of orders missed their deadline in the last 15m; they were waiting in "
        "phase tool.",
    ),
    silent(
        "AgentRunTimeouts",
        "one run in a hundred times out",
        ended("completed", "0+99x60"),
        ended("timeout", "0+1x60"),
        _timeouts("llm", "0+1x60"),
        at="30m",
    ),
    silent(
        "AgentRunTimeouts",
        "two runs timed out of two",
        ended("completed", "0x60"),
        ended("timeout", "0x20 1 2x40"),
        _timeouts("llm", "0x20 1 2x40"),
        at="28m",
    ),
    fires(
        "AgentRunStuck",
        "a run is seven minutes old, and five is the longest that may be asked for",
        _age("running", "0+60x20"),
        _LONGEST,
        at="9m",
        labels={"agent": "orders", "instance": INSTANCE},
        summary="A run of orders is older than every deadline",
        description="The oldest run of orders on 10.0.0.1:8000 has been running for 9m 0s, longer "
        "than any deadline that a caller may ask for.",
    ),
    silent(
        "AgentRunStuck",
        "a run is as old as the longest deadline, its margin included",
        _age("running", "360x20"),
        _LONGEST,
        at="15m",
    ),
    fires(
        "AgentNoSuccess",
        "every run fails, and none was ever completed",
        ended("failed", "0+1x60"),
        _NEVER,
        at="40m",
        labels={"agent": "orders"},
        summary="No run of orders succeeds",
        description="30 runs of orders ended badly in the last 30m, and not one was completed.",
    ),
    silent(
        "AgentNoSuccess",
        "most runs fail, but one was completed ten minutes ago",
        ended("failed", "0+1x120"),
        # promtool's clock starts at 0.
        given(c.LAST_SUCCESS, "0x50 3000x20", agent="orders"),
        at="60m",
    ),
    silent(
        "AgentNoSuccess",
        "nothing was completed, since callers left",
        ended("disconnected", "0+5x60"),
        ended("failed", "0x20 1 2x40"),
        _NEVER,
        at="40m",
    ),
    fires(
        "AgentQueueBacklog",
        "a run has waited for more than half of its deadline, for minutes",
        _age("queued", "16x20"),
        _DEADLINE,
        at="10m",
        labels={"agent": "orders", "instance": INSTANCE},
        summary="Runs of orders wait too long for a slot",
        description="The oldest queued run of orders on 10.0.0.1:8000 has waited for 16s, which "
        "counts against its deadline.",
    ),
    silent(
        "AgentQueueBacklog",
        "runs wait for exactly half of their deadline",
        _age("queued", "15x20"),
        _DEADLINE,
        at="15m",
    ),
)
