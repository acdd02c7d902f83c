"""The callback handler on its own, for LangChain programs that this service does not serve.

    from watchkeeper import watch
    agent.invoke(..., config={"callbacks": [watch("orders")]})

Metrics go to prometheus_client's default registry, spans to the target of the `OTEL_*` variables,
and log lines to standard output.
"""

import atexit
import functools
import sys
from importlib.metadata import version

from app.agents.watch_handler import WatchHandler
from app.runs.prices import Prices
from app.telemetry.export import instance_id
from app.telemetry.logs import Log
from app.telemetry.pipeline import Pipeline, default_registry


def watch(agent: str) -> WatchHandler:
    """Return a LangChain callback handler that emits every run under this name.

    It goes into the `callbacks` of a call's config. One handler watches any number of runs, sync or
    async, also at once. The name is a label of metrics: make one handler for each agent, not for
    each run. The first call opens metrics, spans and log lines for the whole process. What the
    handler meets never fails a run. Durations are in seconds, costs in US dollars.
    """
    pipeline = _pipeline()
    pipeline.admit(agent)
    return WatchHandler(agent, pipeline.emit, _prices().cost)


@functools.cache
def _pipeline() -> Pipeline:
    """The pipeline of the process. The first call of `watch` builds it."""
    log = Log()
    pipeline = Pipeline(version("watchkeeper"), log, default_registry())
    log.start(
        json=not sys.stdout.isatty(),
        level="info",
        version=version("watchkeeper"),
        instance=instance_id(),
        on_drop=pipeline.log_dropped,
        alone=False,
    )
    pipeline.set_global_tracer_provider()
    pipeline.open([], alone=False)
    atexit.register(pipeline.deliver)
    return pipeline


@functools.cache
def _prices() -> Prices:
    return Prices.load()
