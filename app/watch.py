"""The handler on its own, for LangChain programs that are not served here.

    from app.watch import watch
    agent.invoke(..., config={"callbacks": [watch("orders")]})

Metrics are on prometheus_client's default registry, spans go where the `OTEL_*` variables say,
log lines to standard output.
"""

import atexit
import functools
import sys
from importlib.metadata import version
from typing import Any

from app.agents.watch_handler import WatchHandler
from app.runs.prices import Prices
from app.telemetry import logs
from app.telemetry.export import instance_id
from app.telemetry.pipeline import Pipeline, default_registry


def watch(agent: str) -> Any:
    """A LangChain callback handler for any number of runs, told under this name.

    Names are labels of metrics: give each agent one, not each run.
    """
    pipeline = _pipeline()
    pipeline.admit(agent)
    return WatchHandler(agent, pipeline.emit, _prices().cost)


@functools.cache
def _pipeline() -> Pipeline:
    """One for the process, made when the first agent is watched."""
    pipeline = Pipeline(version("watchkeeper"), default_registry())
    logs.start(
        json=not sys.stdout.isatty(),
        level="info",
        version=version("watchkeeper"),
        instance=instance_id(),
        on_drop=pipeline.log_dropped,
        alone=False,
    )
    pipeline.lead()
    pipeline.open([], alone=False)
    atexit.register(pipeline.deliver)
    return pipeline


@functools.cache
def _prices() -> Prices:
    return Prices.load()
