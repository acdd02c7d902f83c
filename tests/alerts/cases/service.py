"""Cases of the alerts on the service as a process."""

from app.telemetry import catalogue as c
from dashboards.rules.promql import SCRAPE_DURATION, SCRAPED_SAMPLES, UP
from tests.alerts.promtool import INSTANCE, Case, FiringAlert, Given, fires, given, silent

_OTHER = "10.0.0.2:8000"


def _running(agent: str, state: str, values: str, mode: str = "sync") -> Given:
    return given(c.IN_FLIGHT, values, agent=agent, mode=mode, state=state)


def _build(values: str, instance: str = INSTANCE) -> Given:
    labels = dict.fromkeys(c.BUILD_INFO.label_names, "1")
    return given(c.BUILD_INFO, values, instance=instance, **labels)


_PLACES = given(c.CONCURRENCY_LIMIT, "64x40")

CASES = (
    fires(
        "AgentServiceDown",
        "one of two instances does not answer",
        given(UP, "1x4 0x20"),
        given(UP, "1x30", instance=_OTHER),
        at="8m",
        labels={"instance": INSTANCE},
        summary="10.0.0.1:8000 is down",
        description="10.0.0.1:8000 of watchkeeper has not answered a scrape for 2m.",
    ),
    silent(
        "AgentServiceDown",
        "a restart takes a minute, and another job is down",
        given(UP, "1x4 0 1x20"),
        given(UP, "0x30", job="database"),
        at="6m",
    ),
    fires(
        "AgentServiceAbsent",
        "the only instance has gone",
        _build("1x4 stale"),
        at="15m",
        labels={},
        summary="No instance of watchkeeper reports",
        description="Prometheus has had no sample of any instance of watchkeeper for 5m: all are "
        "down, or none is scraped.",
    ),
    silent(
        "AgentServiceAbsent",
        "one of two instances has gone",
        _build("1x4 stale"),
        _build("1x30", _OTHER),
        at="15m",
    ),
    Case(
        "AgentWatchdog",
        "always",
        (),
        "1m",
        (
            FiringAlert(
                {},
                "Alerting works",
                "This alert always fires. If its receiver does not get it, Prometheus, "
                "Alertmanager or the way between them is broken.",
                {},
            ),
        ),
    ),
    fires(
        "AgentSaturated",
        "58 of 64 places are taken, by two agents",
        _running("orders", "running", "30x40"),
        _running("help", "running", "28x40"),
        _PLACES,
        at="15m",
        labels={"instance": INSTANCE},
        summary="10.0.0.1:8000 is full",
        description="58 runs are running on 10.0.0.1:8000: nearly every slot is in use.",
    ),
    silent(
        "AgentSaturated",
        "57 of 64 places are taken; what waits takes none, nor do background runs",
        _running("orders", "running", "57x40"),
        _running("orders", "running", "16x40", "background"),
        _running("orders", "queued", "20x40"),
        _PLACES,
        at="15m",
    ),
    fires(
        "AgentRequestsShed",
        "two requests a minute are refused",
        given(c.REJECTED, "0+2x20", reason="overloaded"),
        at="10m",
        labels={"instance": INSTANCE},
        summary="10.0.0.1:8000 refuses requests",
        description="10 requests were refused as overloaded by 10.0.0.1:8000 in the last 5m.",
    ),
    silent(
        "AgentRequestsShed",
        "four were refused at once; many more while it was shutting down",
        given(c.REJECTED, "0x5 4x20", reason="overloaded"),
        given(c.REJECTED, "0+9x20", reason="draining"),
        at="9m",
    ),
    fires(
        "AgentEventLoopBlocked",
        "the loop was held three times",
        given(c.LOOP_BLOCKED, "0 1 2 3x20"),
        at="6m",
        labels={"instance": INSTANCE},
        summary="Something blocks the event loop of 10.0.0.1:8000",
        description="3 times in the last 15m something held the event loop of 10.0.0.1:8000 for "
        "more than half a second; none of its runs could continue.",
    ),
    silent(
        "AgentEventLoopBlocked",
        "the loop was held twice",
        given(c.LOOP_BLOCKED, "0x16 1 2x20"),
        at="20m",
    ),
    fires(
        "AgentScrapeTooHeavy",
        "a scrape has more samples than the budget",
        given(SCRAPED_SAMPLES, "12001x40"),
        given(SCRAPE_DURATION, "0.1x40"),
        at="20m",
        labels={"instance": INSTANCE},
        summary="Scraping 10.0.0.1:8000 is heavy",
        description="A scrape of 10.0.0.1:8000 has more samples than the budget of 12000, or "
        "takes longer than 2 s: the number is 12k.",
    ),
    fires(
        "AgentScrapeTooHeavy",
        "a scrape takes long",
        given(SCRAPED_SAMPLES, "800x40"),
        given(SCRAPE_DURATION, "2.5x40"),
        at="20m",
        labels={"instance": INSTANCE},
        summary="Scraping 10.0.0.1:8000 is heavy",
        description="A scrape of 10.0.0.1:8000 has more samples than the budget of 12000, or "
        "takes longer than 2 s: the number is 2.5.",
    ),
    silent(
        "AgentScrapeTooHeavy",
        "a scrape is as large and as slow as it may be",
        given(SCRAPED_SAMPLES, "12000x40"),
        given(SCRAPE_DURATION, "2x40"),
        at="30m",
    ),
)
