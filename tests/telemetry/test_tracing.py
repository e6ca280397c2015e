"""The spans of deliveries, as the data path makes them: on virtual time, into a sink that keeps them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from dispatcher.broker.base import TopicPartition
from dispatcher.core.attempt.tracing import Sampler
from dispatcher.core.request.results import Failure, Opened, Reason, Response, Result
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.retry.records import delivery_id
from dispatcher.core.subscription.model import Status
from dispatcher.settings.groups import RetrySettings
from dispatcher.telemetry.spans import FinishedSpan
from dispatcher.telemetry.tracing import Tracing
from tests.fakes import FixedRegistry, MemoryBroker, subscription
from tests.world import World, event, running, until

pytestmark = [pytest.mark.looptime]

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
SAMPLED = [("traceparent", f"00-{TRACE}-{SPAN}-01".encode()), ("tracestate", b"a=1")]
UNSAMPLED = [("traceparent", f"00-{TRACE}-{SPAN}-00".encode())]
OWN = "646c765f" + delivery_id("events", 0, 0, "sub_1")[4:]
BEGIN = 1_000_000_000_000_000  # ns, of the world's wall clock


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[FinishedSpan] = []
        self.closed = False

    def put(self, span: FinishedSpan) -> None:
        self.spans.append(span)

    def counts(self) -> Mapping[str, int]:
        return {"exported": len(self.spans)}

    waiting = 0

    def close(self) -> None:
        self.closed = True

    @property
    def deliveries(self) -> list[FinishedSpan]:
        return [span for span in self.spans if not span.client]

    @property
    def attempts(self) -> list[FinishedSpan]:
        return [span for span in self.spans if span.client]


def tracing_into(sink: Kept, ratio: float = 1.0, *, by_parent: bool = True) -> Tracing:
    numbers = iter(range(1, 1000))
    return Tracing(sink, Sampler(ratio, by_parent=by_parent), system="kafka", bits=lambda _: next(numbers))


# Waits beyond a second are in a tier: virtual time is not for nothing.
TIERS = RetrySettings(tiers=(1.0, 4.0), horizon=1.0, hold_limit=1.0)


def tiered() -> MemoryBroker:
    topics = ("events", "dispatcher.retry.1s", "dispatcher.retry.4s", "dispatcher.retry.parked")
    return MemoryBroker(*(TopicPartition(topic, 0) for topic in topics))


async def delivered(world: World, count: int = 1) -> None:
    await until(lambda: world.metrics.delivered == count, within=4000)


async def test_a_delivery_continues_its_producers_trace_with_an_attempt_below_it() -> None:
    kept = Kept()
    async with running(FixedRegistry(subscription()), tracing=tracing_into(kept)) as world:
        world.transport.answer = lambda *_: (0.25, Response(200))
        world.broker.append(event(1, tenant="acme"), SAMPLED)
        await delivered(world)
    (attempt, delivery) = kept.spans
    assert (delivery.trace_id, delivery.parent_id, delivery.remote) == (int(TRACE, 16), int(SPAN, 16), True)
    assert (attempt.trace_id, attempt.parent_id, attempt.remote) == (int(TRACE, 16), delivery.span_id, False)
    assert len({attempt.span_id, delivery.span_id, int(SPAN, 16)}) == 3
    assert (attempt.state, delivery.state) == ("a=1", "a=1")
    assert delivery.name == "deliver events"
    assert delivery.attributes == {
        "messaging.system": "kafka",
        "messaging.operation.type": "process",
        "messaging.operation.name": "deliver",
        "messaging.destination.name": "events",
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": 0,
        "messaging.message.id": "evt_1",
        "messaging.message.body.size": len(event(1, tenant="acme")),
        "dispatcher.event.type": "test.event",
        "dispatcher.tenant": "acme",
        "dispatcher.subscription.id": "sub_1",
        "dispatcher.delivery.id": delivery_id("events", 0, 0, "sub_1"),
        "dispatcher.outcome": "delivered",
        "dispatcher.attempts": 1,
    }
    assert attempt.name == "POST"
    assert attempt.attributes == {
        "http.request.method": "POST",
        "server.address": "endpoint.test",
        "server.port": 80,
        "url.scheme": "http",
        "http.response.status_code": 200,
        "dispatcher.attempt": 1,
        "dispatcher.decision": "delivered",
    }
    assert (attempt.error, delivery.error) == (None, None)
    assert attempt.ended_ns - attempt.began_ns == pytest.approx(250_000_000, rel=1e-3)
    assert delivery.began_ns <= attempt.began_ns
    assert delivery.ended_ns >= attempt.ended_ns
    assert attempt.began_ns >= BEGIN


async def test_the_phases_of_an_attempt_are_events_at_the_times_when_each_was_over() -> None:
    kept = Kept()
    async with running(
        FixedRegistry(subscription(url="https://endpoint.test/hook")), tracing=tracing_into(kept)
    ) as world:
        loop = asyncio.get_running_loop()

        def answer(*_: object) -> tuple[float, Result]:
            opened = Opened(dns=0.010, connect=0.020, tls=0.030)
            return 0.5, Response(200, first_byte=loop.time() + 0.2, opened=opened)

        world.transport.answer = answer
        world.broker.append(event(1))
        await delivered(world)
    began = kept.attempts[0].began_ns
    assert [
        (name, round((at - began) / 1e6), attributes) for name, at, attributes in kept.attempts[0].events
    ] == [
        ("dns", 10, {"dispatcher.duration_ms": 10}),
        ("connect", 30, {"dispatcher.duration_ms": 20}),
        ("tls", 60, {"dispatcher.duration_ms": 30}),
        ("send", 60, {}),
        ("first_byte", 200, {"dispatcher.duration_ms": 140}),
    ]


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (Response(200), ["send", "first_byte"]),  # on a connection that was there
        (Failure(Reason.DNS_NOT_FOUND, opened=Opened(dns=0.1)), ["dns"]),
        (Failure(Reason.CONNECT_TIMEOUT, opened=Opened(dns=0.1, connect=0.1)), ["dns", "connect"]),
        (
            Failure(Reason.TLS_EXPIRED, opened=Opened(dns=0.1, connect=0.1, tls=0.1)),
            ["dns", "connect", "tls"],
        ),
        (Failure(Reason.TIMEOUT, opened=Opened(dns=0.1, connect=0.1)), ["dns", "connect"]),
        (
            Failure(Reason.TIMEOUT, opened=Opened(dns=0.1, connect=0.1, tls=0.1)),
            ["dns", "connect", "tls", "send"],
        ),
        (Failure(Reason.CLOSED), ["send"]),
        (Failure(Reason.BLOCKED), []),
    ],
)
async def test_an_attempt_has_the_events_of_what_it_came_to(result: Result, names: list[str]) -> None:
    kept = Kept()
    registry = FixedRegistry(subscription(url="https://endpoint.test/hook"))
    async with running(registry, tracing=tracing_into(kept)) as world:
        answers: Iterator[Result] = iter([result, Response(200)])
        world.transport.answer = lambda *_: (1.0, next(answers))
        world.broker.append(event(1))
        await delivered(world)
    attempt = kept.attempts[0]
    assert [name for name, _, _ in attempt.events] == names
    assert all(attempt.began_ns <= at <= attempt.ended_ns for _, at, _ in attempt.events)


async def test_retries_out_of_memory_are_attempts_of_one_delivery() -> None:
    kept = Kept()
    async with running(FixedRegistry(subscription()), tracing=tracing_into(kept)) as world:
        answers: Iterator[Result] = iter([Response(503), Response(200)])
        world.transport.answer = lambda *_: (0.001, next(answers))
        world.broker.append(event(1), SAMPLED)
        await delivered(world)
    (delivery,) = kept.deliveries
    first, second = kept.attempts
    assert first.parent_id == second.parent_id == delivery.span_id
    assert first.error == "status 503"
    assert first.attributes["error.type"] == "503"
    assert first.attributes["dispatcher.decision"] == "retry"
    assert "http.request.resend_count" not in first.attributes
    assert second.attributes["http.request.resend_count"] == 1
    assert delivery.attributes["dispatcher.attempts"] == 2
    assert delivery.ended_ns - delivery.began_ns >= 5e9  # with the wait


@pytest.mark.parametrize("headers", [SAMPLED, []], ids=["of the producer", "of its own"])
async def test_attempts_out_of_a_tier_continue_the_trace(headers: list[tuple[str, bytes]]) -> None:
    kept = Kept()
    registry = FixedRegistry(subscription(retry=RetryPolicy((8.0, 8.0), 0.0)))
    async with running(registry, tiered(), retry=TIERS, tracing=tracing_into(kept)) as world:
        answers: Iterator[Result] = iter([Response(503), Failure(Reason.TIMEOUT, "slow"), Response(200)])
        world.transport.answer = lambda *_: (0.001, next(answers))
        world.broker.append(event(1), headers)
        await delivered(world)
        assert len(world.parked()) >= 2
    trace = int(TRACE if headers else OWN, 16)
    assert {span.trace_id for span in kept.spans} == {trace}
    stays = kept.deliveries
    assert [stay.attributes["dispatcher.outcome"] for stay in stays] == ["retry", "retry", "delivered"]
    assert [stay.error for stay in stays] == [None, None, None]
    first = int(OWN[16:], 16)
    if headers:
        assert {stay.parent_id for stay in stays} == {int(SPAN, 16)}
    else:
        assert [stay.parent_id for stay in stays] == [None, first, first]
        assert stays[0].span_id == first
    assert [span.parent_id for span in kept.attempts] == [stay.span_id for stay in stays]
    assert [span.attributes["dispatcher.attempt"] for span in kept.attempts] == [1, 2, 3]
    assert kept.attempts[1].error == "timeout: slow"
    assert kept.attempts[1].attributes["error.type"] == "timeout"


async def test_what_is_given_up_says_why() -> None:
    kept = Kept()
    registry = FixedRegistry(subscription(retry=RetryPolicy((), 0.0)))
    async with running(registry, tracing=tracing_into(kept)) as world:
        world.transport.answer = lambda *_: (0.001, Response(500))
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
    (delivery,) = kept.deliveries
    assert delivery.error == "exhausted"
    assert delivery.attributes["dispatcher.outcome"] == "dead"
    assert delivery.attributes["dispatcher.reason"] == "exhausted"


async def test_what_is_parked_without_an_attempt_has_a_span_that_says_why_and_comes_back_into_its_trace() -> (
    None
):
    kept = Kept()
    one = subscription(max_in_flight=1)
    registry = FixedRegistry(one)
    async with running(registry, tiered(), retry=TIERS, tracing=tracing_into(kept)) as world:
        world.transport.answer = lambda *_: None
        world.broker.append(event(1), UNSAMPLED)
        world.broker.append(event(2), SAMPLED)
        await until(lambda: world.value("deliveries_queued") == 1)
        registry.index = registry.index.replaced(one.with_status(Status.PAUSED, None))
        world.transport.end(lambda _: Response(200))
        await until(lambda: len(world.parked()) == 1)
        registry.index = registry.index.replaced(one.with_status(Status.ACTIVE, None))
        world.transport.answer = lambda *_: (0.001, Response(200))
        await delivered(world, 2)
    parked, ended = kept.deliveries
    assert parked.attributes["dispatcher.outcome"] == "parked"
    assert parked.attributes["dispatcher.reason"] == "paused"
    assert parked.attributes["dispatcher.attempts"] == 0
    assert ended.attributes["dispatcher.outcome"] == "delivered"
    assert {span.trace_id for span in kept.spans} == {int(TRACE, 16)}


async def test_what_is_dropped_after_an_attempt_ends_its_span() -> None:
    kept = Kept()
    registry = FixedRegistry(subscription())
    async with running(registry, tracing=tracing_into(kept)) as world:
        world.transport.answer = lambda *_: (0.001, Response(500))
        world.broker.append(event(1))
        await until(lambda: world.value("deliveries_held") == 1)
        registry.index = registry.index.without("sub_1")
        await until(lambda: world.committed == 1)
    (delivery,) = kept.deliveries
    assert delivery.attributes["dispatcher.outcome"] == "dropped"
    assert delivery.attributes["dispatcher.reason"] == "deleted"
    assert delivery.attributes["dispatcher.attempts"] == 1


async def test_what_goes_with_its_partition_ends_its_span() -> None:
    kept = Kept()
    async with running(FixedRegistry(subscription()), tracing=tracing_into(kept)) as world:
        world.transport.answer = lambda *_: (0.001, Response(500))
        world.broker.append(event(1))
        await until(lambda: world.value("deliveries_held") == 1)
        await world.broker.consumers[0].assign([])
        await until(lambda: world.value("deliveries_in_flight") == 0)
    (delivery,) = kept.deliveries
    assert delivery.attributes["dispatcher.outcome"] == "left_to_another"


async def test_what_a_stop_cuts_off_ends_its_spans() -> None:
    kept = Kept()
    async with running(FixedRegistry(subscription()), tracing=tracing_into(kept)) as world:
        world.transport.answer = lambda *_: None
        world.broker.append(event(1), SAMPLED)
        await until(lambda: len(world.transport.sent) == 1)
    (attempt,) = kept.attempts
    (delivery,) = kept.deliveries
    assert attempt.attributes["error.type"] == "shutdown"
    assert attempt.parent_id == delivery.span_id
    assert (delivery.attributes["dispatcher.outcome"], delivery.attributes["dispatcher.reason"]) == (
        "parked",
        "shutdown",
    )


async def test_what_is_held_at_a_stop_ends_its_span_whether_it_came_from_a_tier_or_not() -> None:
    kept = Kept()
    registry = FixedRegistry(subscription("a", retry=RetryPolicy((1.0,), 0.0)))
    async with running(registry, tiered(), retry=TIERS, tracing=tracing_into(kept)) as world:
        world.transport.answer = lambda *_: (0.001, Response(500))
        world.broker.append(event(1), SAMPLED)
        await until(lambda: world.value("deliveries_held") == 1)
    (fresh,) = kept.deliveries
    assert (fresh.attributes["dispatcher.outcome"], fresh.attributes["dispatcher.reason"]) == (
        "retry",
        "shutdown",
    )
    later = Kept()
    registry = FixedRegistry(subscription("a", retry=RetryPolicy((8.0, 1.0), 0.0)))
    async with running(registry, tiered(), retry=TIERS, tracing=tracing_into(later)) as world:
        world.transport.answer = lambda *_: (0.001, Response(500))
        world.broker.append(event(1), SAMPLED)
        await until(
            lambda: len(world.transport.sent) == 2 and world.value("deliveries_held") == 1, within=1000
        )
    assert [span.attributes["dispatcher.outcome"] for span in later.deliveries] == [
        "retry",
        "left_to_another",
    ]


# Sampling.


@pytest.mark.parametrize(
    ("headers", "ratio", "spans"),
    [(SAMPLED, 0.0, 2), (UNSAMPLED, 1.0, 0), ([], 0.0, 0), ([], 1.0, 2)],
    ids=["flag 01", "flag 00", "no parent, 0", "no parent, 1"],
)
async def test_the_producers_flag_decides_and_the_ratio_only_without_one(
    headers: list[tuple[str, bytes]], ratio: float, spans: int
) -> None:
    kept = Kept()
    async with running(FixedRegistry(subscription()), tracing=tracing_into(kept, ratio)) as world:
        world.broker.append(event(1), headers)
        await delivered(world)
    assert len(kept.spans) == spans


async def test_of_what_is_not_sampled_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    tracing = tracing_into(kept)

    def fail(*_: object) -> Any:
        raise AssertionError

    monkeypatch.setattr(tracing, "attempt", fail)
    monkeypatch.setattr(tracing, "ended", fail)
    registry = FixedRegistry(subscription(retry=RetryPolicy((8.0,), 0.0)))
    async with running(registry, tiered(), retry=TIERS, tracing=tracing) as world:
        answers: Iterator[Result] = iter([Response(503), Response(200)])
        world.transport.answer = lambda *_: (0.001, next(answers))
        world.broker.append(event(1), UNSAMPLED)
        await delivered(world)


async def test_the_ratio_is_of_deliveries_and_all_of_an_event_are_sampled_or_none() -> None:
    kept = Kept()
    registry = FixedRegistry(subscription("a"), subscription("b"))
    async with running(registry, tracing=tracing_into(kept, 0.1)) as world:
        for number in range(500):
            world.broker.append(event(number))
        await delivered(world, 1000)
    offsets = [span.attributes["messaging.kafka.offset"] for span in kept.deliveries]
    assert 90 <= len(offsets) <= 110
    assert sorted(offsets) == sorted(2 * [*set(offsets)])
    assert len({span.trace_id for span in kept.deliveries}) == len(offsets)  # a trace each


# Log lines.


async def test_the_line_of_an_attempt_names_its_span_and_without_one_its_producers_trace() -> None:
    kept = Kept()
    with capture_logs() as lines:
        async with running(FixedRegistry(subscription()), tracing=tracing_into(kept, 0.0)) as world:
            answers: Iterator[Result] = iter([*[Response(500)] * 3, *[Response(200)] * 3])
            world.transport.answer = lambda *_: (0.001, next(answers))
            for number, headers in enumerate((SAMPLED, UNSAMPLED, [])):
                world.broker.append(event(number), headers)
            await delivered(world, 3)
    failed = {line["event_id"]: line for line in lines if line["event"] == "attempt failed"}
    span = kept.attempts[0]
    assert (failed["evt_0"]["trace_id"], failed["evt_0"]["span_id"]) == (TRACE, f"{span.span_id:016x}")
    assert (failed["evt_1"]["trace_id"], failed["evt_1"]["span_id"]) == (TRACE, None)
    assert (failed["evt_2"]["trace_id"], failed["evt_2"]["span_id"]) == (None, None)


async def test_a_line_about_a_delivery_that_has_a_trace_of_its_own_names_it_without_tracing_none() -> None:
    for tracing in (tracing_into(Kept()), None):
        with capture_logs() as lines:
            registry = FixedRegistry(subscription())
            async with running(registry, tracing=tracing) as world:
                world.transport.answer = lambda *_: (0.001, Response(500))
                world.broker.append(event(1))
                await until(lambda: world.value("deliveries_held") == 1)
                registry.index = registry.index.without("sub_1")
                await until(lambda: world.committed == 1)
        about = [line for line in lines if line["event"] in {"attempt failed", "delivery dropped"}]
        assert len(about) == 2
        assert [line.get("trace_id") for line in about] == 2 * [None if tracing is None else OWN]
        assert all(("trace_id" in line) is (tracing is not None) for line in about)


# What endpoints get.


def sent_trace(world: World) -> list[str | None]:
    found = []
    for _, _, request in world.transport.sent:
        lines = [line for line in request.split(b"\r\n") if line.startswith(b"traceparent: ")]
        assert len(lines) < 2
        found.append(lines[0][len(b"traceparent: ") :].decode() if lines else None)
    return found


async def test_endpoints_get_the_events_own_trace_context_unless_the_settings_say_otherwise() -> None:
    async with running(FixedRegistry(subscription()), tracing=tracing_into(Kept())) as world:
        world.broker.append(event(1), SAMPLED)
        world.broker.append(event(2))
        await delivered(world, 2)
        assert sent_trace(world) == [f"00-{TRACE}-{SPAN}-01", None]
    async with running(FixedRegistry(subscription()), propagate="none") as world:
        world.broker.append(event(1), SAMPLED)
        await delivered(world)
        assert sent_trace(world) == [None]
        assert b"tracestate" not in world.transport.sent[0][2]


async def test_baggage_stays_with_who_wrote_it() -> None:
    kept = Kept()
    for propagate in ("event", "attempt", "none"):
        async with running(
            FixedRegistry(subscription()), tracing=tracing_into(kept), propagate=propagate
        ) as world:
            world.broker.append(event(1), [*SAMPLED, ("baggage", b"customer=kim")])
            await delivered(world)
            assert b"kim" not in world.transport.sent[0][2]
    assert "kim" not in str(kept.spans)


async def test_each_attempt_is_the_endpoints_parent_where_the_settings_say_so() -> None:
    kept = Kept()
    async with running(
        FixedRegistry(subscription()), tracing=tracing_into(kept, 0.0), propagate="attempt"
    ) as world:
        answers: Iterator[Result] = iter([Response(500), *[Response(200)] * 3])
        world.transport.answer = lambda *_: (0.001, next(answers))
        world.broker.append(event(1), SAMPLED)
        await delivered(world)
        world.broker.append(event(2), UNSAMPLED)
        world.broker.append(event(3))
        await delivered(world, 3)
        first, second, unsampled, none = sent_trace(world)
        assert b"\r\ntracestate: a=1\r\n" in world.transport.sent[0][2]
    assert [first, second] == [f"00-{TRACE}-{span.span_id:016x}-01" for span in kept.attempts]
    assert first != second
    assert unsampled == f"00-{TRACE}-{SPAN}-00"
    assert none is None


# The end.


async def test_closing_sends_what_is_left() -> None:
    kept = Kept()
    await tracing_into(kept).close()
    assert kept.closed
