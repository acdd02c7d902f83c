"""Exports spans by OTLP over HTTP, if the standard `OTEL_*` variables name an endpoint.

A collector that is down or hangs costs a bounded queue and a thread, never a request.
"""

import functools
import logging
import os
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry

from app.runs import plain

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_LONGEST_ATTRIBUTE = 8_192
_FLUSH_MS = 5_000

# Called with a reason and the number of spans that were lost for it.
Dropped = Callable[[str, int], None]

# Trace context only: any caller may send baggage, and it would go on to model providers.
PROPAGATOR = TraceContextTextMapPropagator()


def is_enabled(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an endpoint is set and tracing is not switched off."""
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    none = environment.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    return not off and not none and any(environment.get(name) for name in _ENDPOINTS)


def captures_content(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the operator opted in to the text of callers, models and tools."""
    setting = environment.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "")
    return setting.lower() in ("true", "1", "span", "span_only", "span_and_event")


class Export:
    """A tracer provider that exports in the background. `close` delivers finished spans."""

    def __init__(
        self,
        version: str,
        registry: CollectorRegistry,
        dropped: Dropped,
        exporter: SpanExporter | None = None,
    ) -> None:
        # The SDK has metrics of its own only if this is set before the first provider is built.
        os.environ.setdefault("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
        ours = {
            "service.name": "watchkeeper",
            "service.version": version,
            "service.instance.id": instance_id(),
        }
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override our attributes.
        resource = Resource.create(ours).merge(OTELResourceDetector().detect())
        reader = PrometheusMetricReader(disable_target_info=True, registry=registry)
        self._meters = MeterProvider(metric_readers=[reader], resource=resource)
        self.provider = TracerProvider(
            resource=resource,
            span_limits=SpanLimits(max_attribute_length=_LONGEST_ATTRIBUTE),
            # The provider's counts of live and started spans cost as much as the spans themselves.
            # The counts of the queue and the exporter, below, show what is lost.
            meter_provider=NoOpMeterProvider(),
            shutdown_on_exit=False,
        )
        self.provider.sampler = _distrustful(self.provider.sampler)
        self._processor = CountingProcessor(
            CountingExporter(exporter or OTLPSpanExporter(), dropped), dropped, self._meters
        )
        self.provider.add_span_processor(self._processor)
        # OpenTelemetry logs the content of spans that it could not send.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    def close(self) -> None:
        """Deliver finished spans, for a few seconds at most. Blocks: call it in a thread."""
        self._processor.close()
        self._meters.shutdown()


class CountingProcessor(BatchSpanProcessor):
    """Counts the spans that a full queue loses."""

    def __init__(self, exporter: SpanExporter, dropped: Dropped, meters: MeterProvider) -> None:
        super().__init__(exporter, meter_provider=meters)
        self._dropped = dropped

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span. A full queue drops its oldest span."""
        batch = self._batch_processor
        if len(batch._queue) >= batch._max_queue_size:
            self._dropped("queue_full", 1)
        super().on_end(span)

    def close(self) -> None:
        """Stop, within a bound."""
        self._batch_processor.shutdown(timeout_millis=_FLUSH_MS)


class CountingExporter(SpanExporter):
    """Counts spans that were not delivered, whether the exporter reports it or raises.

    A span whose name UTF-8 cannot encode would fail its whole batch, so it is left out.
    """

    def __init__(self, inner: SpanExporter, dropped: Dropped) -> None:
        self._inner = inner
        self._dropped = dropped

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send one batch, in the background thread."""
        sendable = [span for span in spans if _is_sendable(span)]
        if len(sendable) < len(spans):
            self._dropped("export_failed", len(spans) - len(sendable))
        if not sendable:
            return SpanExportResult.FAILURE
        try:
            result = self._inner.export(sendable)
        except Exception:  # noqa: BLE001 - telemetry must not break what it observes
            result = SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self._dropped("export_failed", len(sendable))
        return result

    def shutdown(self) -> None:
        """Close the connection."""
        self._inner.shutdown()


def _is_sendable(span: ReadableSpan) -> bool:
    """Whether UTF-8 can encode the span's names. Spans of users may have any name.

    The exporter itself leaves out an attribute that it cannot send.
    """
    texts = (span.name, span.status.description or "", *(event.name for event in span.events))
    return all(text == plain.sendable(text) for text in texts)


@functools.cache
def instance_id() -> str:
    """Return a name of this process that no replica and no former process has."""
    return f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"


def current_trace() -> str | None:
    """Return the span of the current request in the form of W3C's `traceresponse`."""
    span = get_current_span()
    if not span.is_recording():
        return None
    ids = span.get_span_context()
    return f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags & 1:02x}"


def outgoing_headers() -> dict[str, str]:
    """Return the headers by which a request to a model provider joins the current trace."""
    headers: dict[str, str] = {}
    PROPAGATOR.inject(headers)
    return headers


def _distrustful(sampler: Sampler) -> Sampler:
    """Sample a remote parent as a new trace: any caller may send a sampled flag."""
    root = getattr(sampler, "_root", None)
    if isinstance(sampler, ParentBased) and isinstance(root, Sampler):
        return ParentBased(root=root, remote_parent_sampled=root)
    return sampler
