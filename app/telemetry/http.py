"""HTTP metrics: the time of each request by route template, and a debug line for each request."""

import os
import time
from collections.abc import Callable, MutableMapping
from typing import Any

from opentelemetry import propagate
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import Span
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.telemetry import lines
from app.telemetry.catalogue import HTTP_DURATION
from app.telemetry.export import PROPAGATOR
from app.telemetry.logs import Log
from app.telemetry.metrics import Metrics

# Attributes of a server span whose values come from the caller.
_FROM_CALLER = ("url.path", "url.query", "url.full", "user_agent.original", "server.address")


class HttpMetrics:
    """ASGI middleware, outermost, so that it measures what the client sees.

    It takes a function: the metrics are built later, once the agents are known.
    """

    def __init__(self, app: ASGIApp, metrics: Callable[[], Metrics | None], log: Log) -> None:
        self.app = app
        self._log = log
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def send_and_observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_observe)
        finally:
            self._observe(scope, status, time.perf_counter() - started)

    def _observe(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"]
        metrics = self._metrics()
        if metrics is not None:
            child = metrics.instruments[HTTP_DURATION].child(route, method, str(status))
            child.observe(seconds)
        if self._log.is_on("debug"):
            fields = {"route": route, "status": status, "duration_s": round(seconds, 4)}
            self._log.log("debug", lines.REQUEST_FINISHED, **fields)


def instrument(app: Any, provider: Any) -> None:
    """Trace each request but health and metrics, as a server span in the caller's trace."""
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    propagate.set_global_textmap(PROPAGATOR)
    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=provider,
        meter_provider=NoOpMeterProvider(),
        excluded_urls=r"^https?://[^/]+/health(/|$),^https?://[^/]+/metrics$",
        exclude_spans=["send", "receive"],
        server_request_hook=_blank_caller_attributes,
    )


def _blank_caller_attributes(span: Span, scope: Scope) -> None:
    """Blank addresses and headers, which are the caller's text. The route template is ours."""
    attributes = getattr(span, "attributes", None) or {}
    span.set_attributes({key: "" for key in _FROM_CALLER if key in attributes})
