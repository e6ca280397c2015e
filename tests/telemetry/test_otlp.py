"""What reaches a collector, over real HTTP and gRPC; and that one that is away harms nothing."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from pydantic import SecretStr
from structlog.testing import capture_logs

from dispatcher.__about__ import __version__
from dispatcher.core.attempt.tracing import Sampler
from dispatcher.core.request.results import Response, Result
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.settings.groups import Settings, TracingSettings
from dispatcher.telemetry import otlp, tracing as tracing_module
from dispatcher.telemetry.otlp import CountingExporter, OtlpSink, exporter_of, readable
from dispatcher.telemetry.spans import FinishedSpan
from dispatcher.telemetry.tracing import Tracing, TracingRefused, open_tracing
from tests.fakes import FixedRegistry, subscription
from tests.ports import free_port
from tests.telemetry.collector import Collector, over_grpc, over_http
from tests.world import event, running, until

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
PARENT = ("traceparent", f"00-{TRACE}-{SPAN}-01".encode())
CONSUMER, CLIENT = 5, 3  # of OTLP's SpanKind


def span(number: int = 1) -> FinishedSpan:
    return FinishedSpan(
        "POST",
        trace_id=number,
        span_id=number,
        parent_id=None,
        remote=False,
        state=None,
        client=True,
        began_ns=1,
        ended_ns=2,
        attributes={},
        events=[],
        error=None,
    )


def sink_to(url: str, **settings: Any) -> OtlpSink:
    return OtlpSink(TracingSettings(endpoint=url, **settings), "host:1", {})


@pytest.mark.parametrize(("protocol", "serve"), [("http/protobuf", over_http), ("grpc", over_grpc)])
async def test_a_delivery_with_a_retry_arrives_at_a_collector(
    protocol: Any, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=staging")
    started: AbstractContextManager[Collector] = serve()
    with started as collector:
        sink = sink_to(collector.url, protocol=protocol, headers=(SecretStr("X-Api-Key = hunter2"),))
        tracing = Tracing(sink, Sampler(0.0, by_parent=True), system="kafka")
        registry = FixedRegistry(subscription(retry=RetryPolicy((0.01,), 0.0)))
        async with running(registry, tracing=tracing) as world:
            answers: Iterator[Result] = iter([Response(503), Response(200)])
            world.transport.answer = lambda *_: (0.001, next(answers))
            world.broker.append(event(1), [PARENT, ("tracestate", b"a=1,b=2")])
            await until(lambda: world.metrics.delivered == 1)
        await tracing.close()
        first, second, delivery = collector.spans(3)
    assert {each.trace_id for each in (first, second, delivery)} == {TRACE}
    assert delivery.parent_id == SPAN
    assert first.parent_id == second.parent_id == delivery.span_id
    assert (first.kind, second.kind, delivery.kind) == (CLIENT, CLIENT, CONSUMER)
    assert (first.name, delivery.name) == ("POST", "deliver events")
    assert delivery.state == "a=1,b=2"
    assert delivery.flags & 0x300 == 0x300  # its parent is another process's, and that is known
    assert first.flags & 0x300 == 0x100
    assert (first.failed, first.message) == (True, "status 503")
    assert (second.failed, delivery.failed) == (False, False)
    assert first.attributes["http.response.status_code"] == 503
    assert [name for name, _ in first.events] == ["send", "first_byte"]
    assert delivery.attributes["dispatcher.attempts"] == 2
    assert delivery.resource["service.name"] == "webhook-dispatcher"
    assert delivery.resource["service.version"] == __version__
    assert delivery.resource["service.instance.id"] == "host:1"
    assert delivery.resource["deployment.environment"] == "staging"
    path, headers = collector.requests[0]
    assert path == ("grpc" if protocol == "grpc" else "/v1/traces")
    assert headers["x-api-key"] == "hunter2"
    assert sink.counts() == {"exported": 3, "failed": 0, "dropped": 0}
    assert sink.waiting == 0


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("known", [True, False], ids=["as we know it", "of another version"])
def test_the_sdks_encoder_is_used_only_where_the_exporter_is_not_as_we_know_it(
    protocol: Any, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: AbstractContextManager[Collector] = over_grpc() if protocol == "grpc" else over_http()
    with started as collector:
        sink = sink_to(collector.url, protocol=protocol)
        calls: list[FinishedSpan] = []

        def counted(span: FinishedSpan, resource: Resource) -> ReadableSpan:
            calls.append(span)
            return readable(span, resource)

        monkeypatch.setattr(otlp, "readable", counted)
        if not known:
            monkeypatch.setattr(otlp, "_HTTP", "another")
            monkeypatch.setattr(type(sink._exporter._inner), "takes_encoded", False, raising=False)
        sink.put(span(7))
        sink.close()
        (found,) = collector.spans(1)
    assert found.span_id == f"{7:016x}"
    assert len(calls) == (0 if known else 1)
    assert sink.counts()["exported"] == 1


async def test_the_variables_of_opentelemetry_hold_where_the_settings_say_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with over_http() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=hunter2")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "webhooks")
        sink = OtlpSink(TracingSettings(), "host:1", {})
        sink.put(span())
        sink.close()
        (found,) = collector.spans(1)
    assert found.resource["service.name"] == "webhooks"
    assert collector.requests[0][0] == "/v1/traces"
    assert collector.requests[0][1]["x-api-key"] == "hunter2"


def test_the_protocol_comes_from_the_settings_then_from_the_environment() -> None:
    def module_of(settings: TracingSettings, **environ: str) -> str:
        exporter = exporter_of(settings, environ)
        exporter.shutdown()
        return " ".join(each.__module__ for each in type(exporter).__mro__)

    general, special = "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
    assert ".http." in module_of(TracingSettings())
    assert ".grpc." in module_of(TracingSettings(), **{general: "grpc"})
    assert ".http." in module_of(TracingSettings(), **{general: "grpc", special: "http/protobuf"})
    assert ".http." in module_of(TracingSettings(protocol="http/protobuf"), **{general: "grpc"})
    with pytest.raises(ValueError, match="neither http/protobuf nor grpc"):
        exporter_of(TracingSettings(), {general: "http/json"})


def test_beyond_the_queue_spans_are_dropped_and_counted_and_nobody_waits() -> None:
    with over_http() as collector:
        collector.gate.clear()  # whatever is sent stays under way
        sink = sink_to(collector.url, queue=512)
        for number in range(1, 601):
            sink.put(span(number))
        assert (sink.waiting, sink.counts()["dropped"]) == (512, 88)
        collector.gate.set()
        sink.close()
        assert len(collector.spans(512)) == 512
    assert sink.counts() == {"exported": 512, "failed": 0, "dropped": 88}
    assert sink.waiting == 0


def test_a_collector_that_is_away_costs_spans_and_one_line_in_the_log() -> None:
    with capture_logs() as lines:
        sink = sink_to(f"http://127.0.0.1:{free_port()}", timeout=0.2)
        for number in range(1, 1025):
            sink.put(span(number))
        sink.close()
    assert sink.counts() == {"exported": 0, "failed": 1024, "dropped": 0}
    (line,) = lines
    assert line["event"] == "the collector takes no spans: they are lost"
    assert "timeout" in line["error"]


class Broken(SpanExporter):
    """Says what it is told, and fails."""

    def __init__(self, *says: str) -> None:
        self.says = says

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for said in self.says:
            logging.getLogger("opentelemetry.exporter").warning("%s", said)
        if not self.says:
            raise ValueError("broken")
        return SpanExportResult.FAILURE


@pytest.mark.parametrize(
    ("says", "error"),
    [
        (("no route", "no route still", "given up"), "no route ... given up"),
        (("refused",), "refused"),
        ((), "ValueError('broken')"),
    ],
)
def test_the_line_says_what_the_exporter_said_of_its_first_try_and_its_last(
    says: tuple[str, ...], error: str
) -> None:
    with capture_logs() as lines:
        exporter = CountingExporter(Broken(*says), Resource({}))
        assert exporter.export([]) is SpanExportResult.FAILURE
        assert exporter.export([]) is SpanExportResult.FAILURE
    assert [line["error"] for line in lines] == [error]


def test_a_collector_that_refuses_is_named_with_its_answer_and_again_when_it_takes_them() -> None:
    with over_http() as collector, capture_logs() as lines:
        sink = sink_to(collector.url)
        collector.status = 401
        for number in range(1, 513):  # a batch, which goes at once
            sink.put(span(number))
        collector.asked(1)
        while sink.waiting:  # its answer is on the way
            time.sleep(0.001)
        collector.status = 200
        sink.put(span())
        sink.close()
        collector.spans(1)
    assert [line["event"] for line in lines] == [
        "the collector takes no spans: they are lost",
        "the collector takes spans again",
    ]
    assert "401" in lines[0]["error"]
    assert sink.counts() == {"exported": 1, "failed": 512, "dropped": 0}


async def test_a_collector_that_hangs_does_not_keep_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing_module, "FLUSH_LIMIT", 0.01)
    with over_http() as collector, capture_logs() as lines:
        collector.gate.clear()
        sink = sink_to(collector.url)
        tracing = Tracing(sink, Sampler(1.0, by_parent=True), system="kafka")
        sink.put(span())
        await tracing.close()  # while the collector still says nothing
        assert [line["event"] for line in lines] == ["the collector did not take the last spans in time"]
        assert lines[0]["left"] == 1
        collector.gate.set()
        await asyncio.to_thread(collector.spans, 1)  # its thread goes on while there is a process


# Whether there is any tracing.


def test_only_who_delivers_and_has_it_on_traces() -> None:
    def opened(environ: dict[str, str] | None = None, **settings: Any) -> Tracing | None:
        return open_tracing(Settings(**settings), "host:1", environ or {})

    on = TracingSettings(enabled=True)
    assert opened() is None
    assert opened(tracing=on, roles=("api", "history"), broker="kafka://b:9092") is None
    assert opened({"OTEL_SDK_DISABLED": "TRUE"}, tracing=on) is None
    tracing = opened(tracing=on)
    assert tracing is not None
    tracing.sink.close()


def run(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


WITHOUT_THE_EXTRA = """
import sys
sys.modules["opentelemetry"] = None
from dispatcher.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["run", "check-config"])
def test_without_the_extra_the_start_says_what_to_install(command: str, tmp_path: Path) -> None:
    ended = run(WITHOUT_THE_EXTRA, command, "--set", "tracing.enabled=true", cwd=tmp_path)
    assert ended.returncode == 2
    assert "pip install 'webhook-dispatcher[otel]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_error_is_the_same_for_who_starts_it_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dispatcher.telemetry.otlp", None)
    with pytest.raises(TracingRefused, match=r"webhook-dispatcher\[otel\]"):
        open_tracing(Settings(tracing=TracingSettings(enabled=True)), "host:1", {})


OFF = """
import asyncio, os, sys
from dispatcher.app import App
from dispatcher.cli import main
from dispatcher.settings.groups import HttpSettings, Settings

async def start_and_stop():
    app = App(Settings(http=HttpSettings(port=0)), os.environ)
    await app.start()
    while not app.started:
        await asyncio.sleep(0.01)
    await app.stop()

asyncio.run(start_and_stop())
assert "dispatcher.delivery.engine" in sys.modules
print(sorted(name for name in sys.modules if name.startswith("opentelemetry") or name == "grpc"))
"""


def test_off_it_is_never_imported(tmp_path: Path) -> None:
    ended = run(OFF, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"
