"""A real receiver of OTLP over HTTP: it answers well, with errors, or not at all, as set."""

import gzip
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

_HUNG_AT_MOST_S = 60.0


@dataclass(frozen=True, slots=True)
class Received:
    """One span as it came over the wire; `parent_id` is empty for a root."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start_s: float
    end_s: float
    is_error: bool
    status_text: str
    scope: str
    state: str
    links: tuple[str, ...]
    events: tuple[str, ...]
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]

    @property
    def operation(self) -> str:
        """Its operation of generative AI; empty for other spans."""
        return str(self.attributes.get("gen_ai.operation.name", ""))


@dataclass
class Receiver:
    """Take a span from `spans` once it has come; `raw` keeps the bodies as they were sent.

    `answers` are the statuses of the next requests; afterwards everything is 200. While `hangs`
    is set, no request is answered.
    """

    answers: list[int] = field(default_factory=list)
    hangs: threading.Event = field(default_factory=threading.Event)
    requests: int = 0
    raw: list[bytes] = field(default_factory=list)
    url: str = ""
    _spans: list[Received] = field(default_factory=list)
    _came: threading.Condition = field(default_factory=threading.Condition)
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def spans(self) -> list[Received]:
        """Every span so far, in the order of its coming."""
        with self._came:
            return list(self._spans)

    def wait(
        self, claim: Callable[[Sequence[Received]], object], timeout_s: float = 30.0
    ) -> list[Received]:
        """Wait, in a thread, until the claim is true of the spans; gives them."""
        with self._came:
            assert self._came.wait_for(lambda: claim(self._spans), timeout_s), self._spans
            return list(self._spans)

    def trace_of(self, run_id: str) -> list[Received]:
        """The spans of the trace that has a run."""
        spans = self.spans
        own = {s.trace_id for s in spans if s.attributes.get("agent.run.id") == run_id}
        return [span for span in spans if span.trace_id in own]

    def take(self, body: bytes) -> int:
        """Take one request in; gives the status of its answer."""
        self.requests += 1
        began = time.monotonic()
        while self.hangs.is_set() and not self._over.wait(0.01):
            assert time.monotonic() - began < _HUNG_AT_MOST_S
        status = self.answers.pop(0) if self.answers else 200
        if status == 200:
            self.raw.append(body)
            with self._came:
                self._spans += _received(ExportTraceServiceRequest.FromString(body))
                self._came.notify_all()
        return status


@contextmanager
def receiver(*answers: int) -> Iterator[Receiver]:
    """A receiver on a free port until the block is left; `answers` are its first statuses."""
    collector = Receiver(list(answers))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            status = collector.take(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            try:
                self.send_response(status)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
            except OSError:
                self.close_connection = True  # the exporter has given up

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
    try:
        yield collector
    finally:
        collector._over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _received(request: ExportTraceServiceRequest) -> Iterator[Received]:
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield Received(
                    name=span.name,
                    kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    start_s=span.start_time_unix_nano / 1e9,
                    end_s=span.end_time_unix_nano / 1e9,
                    is_error=span.status.code == Status.STATUS_CODE_ERROR,
                    status_text=span.status.message,
                    scope=scope_spans.scope.name,
                    state=span.trace_state,
                    links=tuple(link.trace_id.hex() for link in span.links),
                    events=tuple(str(event) for event in span.events),
                    attributes=_attributes(span.attributes),
                    resource=resource,
                )


def _attributes(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None
