"""Cases of the error budget: each of the four paces, and what does not burn it."""

from tests.alerts.cases.runs import ended
from tests.alerts.promtool import Case, Given, fires, silent

_BURN = "AgentErrorBudgetBurn"
# Days are not looked at minute by minute: 720 values are a day.
_EVERY = "2m"


def _burns(
    title: str,
    *series: Given,
    at: str,
    share: str,
    pace: str,
    long: str,
    exhausted_in: str,
    every: str = _EVERY,
) -> Case:
    return fires(
        _BURN,
        title,
        *series,
        at=at,
        every=every,
        labels={"agent": "orders"},
        rule={"long": long},
        summary=f"orders burns its error budget {pace} times too fast",
        description=f"{share} of the runs of orders were bad in the last {long}, and they still "
        "are. 1.00% of the runs of 30d may be; at this burn rate that is used up in "
        f"{exhausted_in}.",
    )


# Each pace begins when the slower ones have not lasted long enough, so that one rule fires.
CASES = (
    _burns(
        "one run in five fails, for three quarters of an hour after quiet ones",
        ended("completed", "0+100x180 18000+80x30"),
        ended("failed", "0x180 0+20x30"),
        at="406m",
        share="15.17%",
        pace="14.4",
        long="1h",
        exhausted_in="50 hours",
    ),
    _burns(
        "one run in ten times out, for hours after a quiet day",
        ended("completed", "0+100x720 72000+90x180"),
        ended("timeout", "0x720 0+10x180"),
        at="1680m",
        share="6.648%",
        pace="6",
        long="6h",
        exhausted_in="5 days",
    ),
    _burns(
        "four runs in a hundred are stopped at their limit, for most of a day",
        ended("completed", "0+200x1080 216000+192x375"),
        ended("iteration_limit", "0x1080 0+8x375"),
        at="5520m",
        every="4m",
        share="3.331%",
        pace="3",
        long="1d",
        exhausted_in="10 days",
    ),
    _burns(
        "a little more than one run in a hundred is refused, for hours",
        ended("completed", "0+985x200"),
        ended("rejected", "0+15x200"),
        at="360m",
        share="1.5%",
        pace="1",
        long="3d",
        exhausted_in="30 days",
    ),
    silent(
        _BURN,
        "one run in a hundred fails: the budget lasts for its window",
        ended("completed", "0+99x200"),
        ended("failed", "0+1x200"),
        at="390m",
        every=_EVERY,
    ),
    silent(
        _BURN,
        "callers leave, cancel, and are asked for a human: none of it is the service's fault",
        ended("completed", "0+10x400"),
        ended("disconnected", "0+30x400"),
        ended("cancelled", "0+30x400"),
        ended("interrupted", "0+30x400"),
        at="780m",
        every=_EVERY,
    ),
    silent(
        _BURN,
        "it failed for ten minutes, and has been well for six",
        ended("completed", "0+100x60 6000+0x10 6000+100x30"),
        ended("failed", "0x60 0+100x10 1000x30"),
        at="79m",
    ),
)
