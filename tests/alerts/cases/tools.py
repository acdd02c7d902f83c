"""Cases of the alerts on tools."""

from app.telemetry import catalogue as c
from tests.alerts.promtool import INSTANCE, Given, fires, given, silent

_TOOL = {"agent": "orders", "tool": "query_order"}


def _calls(outcome: str, values: str) -> Given:
    return given(c.TOOL_DURATION, values, "_count", outcome=outcome, **_TOOL)


def _rejected(reason: str, values: str) -> Given:
    return given(c.TOOL_REJECTED, values, agent="orders", reason=reason)


_LIMIT = given(c.THREADS_LIMIT, "16x40")

CASES = (
    fires(
        "AgentToolErrors",
        "three calls in ten raise or hang",
        _calls("completed", "0+7x60"),
        _calls("tool_error", "0+2x60"),
        _calls("timeout", "0+1x60"),
        at="25m",
        labels=_TOOL,
        summary="Tool query_order of orders fails",
        description="30% of the calls of query_order by orders failed or did not return in the "
        "last 10m.",
    ),
    silent(
        "AgentToolErrors",
        "one call in five raises; many were broken off by their callers",
        _calls("completed", "0+4x60"),
        _calls("tool_error", "0+1x60"),
        _calls("cancelled", "0+9x60"),
        at="25m",
    ),
    silent(
        "AgentToolErrors",
        "every call raises, but there are four in ten minutes",
        _calls("tool_error", "0 1 2 3 4 4 4 4 4 4 4 4 5 6 7 8 8 8 8 8 8 8 8"),
        at="22m",
    ),
    fires(
        "AgentToolThreadsAbandoned",
        "nine threads hang",
        given(c.THREADS_ABANDONED, "9x40"),
        _LIMIT,
        at="10m",
        labels={"instance": INSTANCE},
        summary="Threads of hung sync code accumulate on 10.0.0.1:8000",
        description="9 threads of 10.0.0.1:8000 work for runs that have ended: sync tools, models "
        "or nodes that do not return.",
    ),
    silent(
        "AgentToolThreadsAbandoned",
        "half as many hang as there may be at work",
        given(c.THREADS_ABANDONED, "8x40"),
        _LIMIT,
        at="20m",
    ),
    fires(
        "AgentHallucinatedTools",
        "a tool that does not exist is asked for",
        _rejected("unknown_tool", "0+1x60"),
        at="20m",
        labels={"agent": "orders", "reason": "unknown_tool"},
        summary="The model of orders asks for tool calls that cannot be run",
        description="20 tool calls of orders could not be run in the last 30m: unknown_tool.",
    ),
    silent(
        "AgentHallucinatedTools",
        "the arguments of nine calls do not fit",
        _rejected("invalid_args", "0x10 9x40"),
        at="35m",
    ),
)
