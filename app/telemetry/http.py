"""Watches HTTP: the time of each request by route template, and one line for each at debug."""

import os
import time
from collections.abc import Callable, MutableMapping
from typing import Any

from opentelemetry import propagate
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import Span
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.telemetry import lines, logs
from app.telemetry.catalogue import HTTP_DURATION
from app.telemetry.export import PROPAGATOR
from app.telemetry.metrics import Metrics

# Attributes of a server span that hold what a caller sent.
_SENT = ("url.path", "url.query", "url.full", "user_agent.original", "server.address")


class WatchHttp:
    """ASGI middleware, outermost: what it measures is what the client saw.

    The metrics are made when the agents are known, so they are asked for.
    """

    def __init__(self, app: ASGIApp, metrics: Callable[[], Metrics | None]) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            self._tell(scope, status, time.perf_counter() - began)

    def _tell(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"]
        metrics = self._metrics()
        if metrics is not None:
            child = metrics.instruments[HTTP_DURATION].child(route, method, str(status))
            child.observe(seconds)
        if logs.is_on("debug"):
            told = {"route": route, "status": status, "duration_s": round(seconds, 4)}
            logs.log("debug", lines.REQUEST_FINISHED, **told)


def instrument(app: Any, provider: Any) -> None:
    """A server span for each request but health and metrics, joined to the caller's trace."""
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    propagate.set_global_textmap(PROPAGATOR)
    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=provider,
        meter_provider=NoOpMeterProvider(),
        excluded_urls=r"^https?://[^/]+/health(/|$),^https?://[^/]+/metrics$",
        exclude_spans=["send", "receive"],
        server_request_hook=_forget_what_was_sent,
    )


def _forget_what_was_sent(span: Span, scope: Scope) -> None:
    """Addresses and headers are the caller's words; the route template is ours."""
    told = getattr(span, "attributes", None) or {}
    span.set_attributes({key: "" for key in _SENT if key in told})
