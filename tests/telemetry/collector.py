"""A collector that keeps what it is sent, over real HTTP and gRPC, read with OpenTelemetry's own messages."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)


class Received(NamedTuple):
    """One span as it came."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    flags: int
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    failed: bool
    message: str
    resource: dict[str, Any]


class Collector:
    """What came. While `gate` is closed, nobody gets an answer; `status` is what HTTP answers."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.gate = threading.Event()
        self.gate.set()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._spans: list[Received] = []
        self._changed = threading.Condition()

    def take(self, path: str, headers: dict[str, str], request: ExportTraceServiceRequest) -> None:
        """One export."""
        self.gate.wait()
        spans = [
            Received(
                span.name,
                span.kind,
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                span.trace_state,
                span.flags,
                _values(span.attributes),
                [(event.name, _values(event.attributes)) for event in span.events],
                span.status.code == span.status.STATUS_CODE_ERROR,
                span.status.message,
                _values(group.resource.attributes),
            )
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]
        with self._changed:
            self.requests.append((path, headers))
            if self.status == 200:
                self._spans += spans
            self._changed.notify_all()

    def asked(self, count: int, within: float = 60.0) -> None:
        """Wait until so many exports have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= count, within)

    def spans(self, count: int, within: float = 60.0) -> list[Received]:
        """Wait until so many have come; all of them."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._spans) >= count, within), self._spans
            return list(self._spans)


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def over_http() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            headers = {name.lower(): value for name, value in self.headers.items()}
            collector.take(self.path, headers, ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(collector.status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        collector.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def over_grpc() -> Iterator[Collector]:
    collector = Collector()

    class Servicer(TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's name for it
            headers = {str(name): str(value) for name, value in context.invocation_metadata()}
            collector.take("grpc", headers, request)
            return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(Servicer(), server)  # type: ignore[no-untyped-call] # generated
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        collector.gate.set()
        server.stop(None).wait()
