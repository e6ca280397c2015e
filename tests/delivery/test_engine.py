"""The data path on virtual time, between a broker and a transport that do as they are told."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from dispatcher.broker.base import (
    BrokerUnavailable,
    CommitRefused,
    MessageTooLarge,
    MetadataTooLarge,
    Position,
    TopicPartition,
)
from dispatcher.core.commit.note import pack, read_note
from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.request.urls import Origin
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import ClientCertificate, Status
from dispatcher.runtime.tasks import Tasks
from dispatcher.transport.base import Exchange
from tests.fakes import FixedRegistry, MemoryBroker, subscription
from tests.world import EVENTS, World, event, now, running, sent_ids, until

pytestmark = [pytest.mark.looptime]


async def test_an_event_reaches_every_subscription_that_wants_it_and_its_offset_is_committed() -> None:
    registry = FixedRegistry(
        subscription("a"),
        subscription("b", "http://other.test/"),
        subscription("c", event_types=("else.*",)),
    )
    async with running(registry) as world:
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        assert sorted(origin.host for _, origin, _ in world.transport.sent) == ["endpoint.test", "other.test"]
        request = world.transport.sent[0][2]
        assert b"webhook-id: evt_1\r\n" in request
        assert request.endswith(event(1))
        assert world.value("deliveries_total", outcome="delivered") == 2
        assert world.value("attempts_total", outcome="delivered", code_class="2xx") == 2
        assert world.value("deliveries_in_flight") == 0
        assert world.value("deliveries_in_flight_bytes") == 0


async def test_what_nobody_wants_is_counted_and_committed() -> None:
    async with running(FixedRegistry()) as world:
        for number in range(100):
            world.broker.append(event(number))
        await until(lambda: world.committed == 100)
        assert world.value("events_unmatched_total") == 100
        assert world.transport.sent == []


async def test_no_offset_is_committed_past_a_delivery_that_is_still_owed() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda _, exchange: (
            (10.0 if b"evt_3\r" in exchange.request else 0.001),
            Response(200),
        )
        for number in range(10):
            world.broker.append(event(number))
        await asyncio.sleep(5)
        assert world.committed == 3
        await until(lambda: world.committed == 10)
        assert [offset for _, offset in world.broker.commits] == [0, 3, 10]


async def test_a_failed_attempt_is_made_again_when_the_schedule_says_with_the_same_id_and_a_new_timestamp() -> (
    None
):
    async with running(FixedRegistry(subscription())) as world:
        answers: Iterator[Result] = iter([Response(500), Failure(Reason.TIMEOUT), Response(200)])
        world.transport.answer = lambda *_: (0.0, next(answers))
        world.broker.append(event(1))
        await until(lambda: len(world.transport.sent) == 3, within=400)
        times = [time for time, _, _ in world.transport.sent]
        assert times[1] - times[0] == pytest.approx(5.0, abs=0.1)
        assert times[2] - times[1] == pytest.approx(300.0, abs=0.1)
        assert all(b"webhook-id: evt_1\r\n" in request for _, _, request in world.transport.sent)
        assert len({request for _, _, request in world.transport.sent}) == 3
        assert world.value("attempts_total", outcome="status", code_class="5xx") == 1
        assert world.value("attempts_total", outcome="timeout", code_class="none") == 1
        assert world.value("retries_due_total", level="memory") == 2


async def test_a_delivery_given_up_is_in_the_dead_letter_topic_before_its_offset_is_committed() -> None:
    async with running(FixedRegistry(subscription(retry=RetryPolicyOf(5.0, 20.0)))) as world:
        world.transport.answer = lambda *_: (0.0, Response(503))
        world.broker.append(event(1, tenant="acme"))
        await until(lambda: world.committed == 1, within=400)
        assert len(world.transport.sent) == 3
        (dead,) = world.dead()
        assert dead["reason"] == "exhausted"
        assert dead["last_result"] == "status 503"
        assert dead["attempt"] == "3"
        assert dead["subscription_id"] == "sub_1"
        assert (dead["topic"], dead["partition"], dead["offset"]) == ("events", "0", "0")
        assert (dead["event_id"], dead["event_type"], dead["tenant"]) == ("evt_1", "test.event", "acme")
        assert world.broker.produced[0].value == event(1, tenant="acme")
        assert world.given_up == [("sub_1", "evt_1", "exhausted", 3, "status 503")]
        assert world.value("dead_letters_total", reason="exhausted") == 1
        assert world.value("deliveries_total", outcome="dead_lettered") == 1


async def test_a_broker_that_takes_no_dead_letter_holds_the_offset_until_it_does() -> None:
    async with running(FixedRegistry(subscription(retry=RetryPolicyOf()))) as world:
        world.transport.answer = lambda *_: (0.0, Response(500))
        world.broker.produce_errors = [BrokerUnavailable("gone fishing")] * 4
        world.broker.append(event(1))
        await asyncio.sleep(1.5)
        assert not world.committed
        assert world.engine.problems() == ["can't write to the broker: gone fishing"]
        await until(lambda: world.committed == 1)
        assert len(world.dead()) == 1
        assert world.engine.problems() == []


def RetryPolicyOf(*waits: float) -> Any:  # noqa: N802 - reads as the type it makes
    from dispatcher.core.retry.policy import RetryPolicy  # noqa: PLC0415 - beside its only use

    return RetryPolicy(waits, 0.0)


async def test_a_dead_letter_too_large_for_its_topic_is_written_without_its_value() -> None:
    async with running(FixedRegistry(subscription(retry=RetryPolicyOf()))) as world:
        world.transport.answer = lambda *_: (0.0, Response(500))
        world.broker.produce_errors = [MessageTooLarge("1 MiB at most")]
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        (dead,) = world.dead()
        assert dead["omitted"] == f"value of {len(event(1))} bytes"
        assert world.broker.produced[0].value == b""


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (b"not json", [], "json"),
        (b'{"no": "type"}', [], "type"),
        (b"anything", [("type", b"bad\ntype")], "type"),
    ],
)
async def test_a_record_that_is_no_event_is_dead_lettered_and_blocks_nothing(
    value: bytes, headers: list[tuple[str, bytes | None]], reason: str
) -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.broker.append(value, headers)
        world.broker.append(event(2))
        await until(lambda: world.committed == 2)
        assert len(world.transport.sent) == 1
        (dead,) = world.dead()
        assert dead["reason"] == reason
        assert dead["offset"] == "0"
        assert world.broker.produced[0].value == value
        assert [name for name, _ in headers] == [
            n.removeprefix("original.") for n in dead if "original." in n
        ]
        assert world.value("events_invalid_total", reason=reason) == 1


async def test_a_tombstone_is_skipped_and_counted() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.broker.append(None)
        await until(lambda: world.committed == 1)
        assert world.value("events_skipped_total", reason="tombstone") == 1
        assert world.dead() == []


@pytest.mark.parametrize(
    "headers",
    [
        (
            ("ce_specversion", b"1.0"),
            ("ce_id", b"ce 1"),
            ("ce_source", b"/s"),
            ("ce_type", b"user/deleted v2"),
        ),
        (("type", b"user/deleted v2"), ("id", b"ce 1")),
    ],
    ids=["CloudEvents", "header-routed"],
)
async def test_an_event_without_data_is_delivered_with_an_empty_body_and_so_is_its_dead_letter(
    headers: Any,
) -> None:
    async with running(FixedRegistry(subscription(retry=RetryPolicyOf(5.0, 20.0)))) as world:
        world.transport.answer = lambda *_: (0.0, Response(503))
        world.broker.append(None, headers)
        await until(lambda: world.committed == 1, within=400)
        assert len(world.transport.sent) == 3
        for _, _, request in world.transport.sent:
            head, _, body = request.partition(b"\r\n\r\n")
            assert body == b""
            assert b"\r\nContent-Length: 0" in head
            assert b"Content-Type" not in head
            assert b"\r\nwebhook-id: ce%201\r\n" in head
            assert b"\r\nwebhook-event-type: user/deleted%20v2\r\n" in head
        assert world.broker.produced[-1].value == b""
        assert world.dead()[0]["event_id"] == "ce 1"
        assert not world.value("events_skipped_total", reason="tombstone")


@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirect_is_a_failure_that_names_the_location_unless_the_subscription_follows_it(
    status: int,
) -> None:
    async with running(FixedRegistry(subscription(retry=RetryPolicyOf()))) as world:
        world.transport.answer = lambda *_: (0.0, Response(status, location="/elsewhere"))
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        assert len(world.transport.sent) == 1
        assert world.dead()[0]["last_result"] == f"status {status} to /elsewhere"


@pytest.mark.parametrize("status", [307, 308])
async def test_same_origin_redirects_are_followed_within_the_same_attempt(status: int) -> None:
    async with running(FixedRegistry(subscription(follow_redirects=True))) as world:
        answers = iter(
            [
                Response(status, location="two"),
                Response(status, location="http://endpoint.test/3?x=y"),
                Response(200),
            ]
        )
        world.transport.answer = lambda *_: (1.0, next(answers))
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        requests = [request for _, _, request in world.transport.sent]
        assert [request.split(b" ")[1] for request in requests] == [b"/hook", b"/two", b"/3?x=y"]
        assert len({request.split(b"\r\n", 1)[1] for request in requests}) == 1, "headers and body stay"
        assert world.value("attempts_total", outcome="delivered", code_class="2xx") == 1
        assert world.value("attempt_duration_seconds_sum") == pytest.approx(3.0, abs=0.1)


async def test_no_more_than_three_redirects_are_followed() -> None:
    async with running(FixedRegistry(subscription(follow_redirects=True, retry=RetryPolicyOf()))) as world:
        world.transport.answer = lambda *_: (0.0, Response(307, location="/round"))
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        assert len(world.transport.sent) == 4
        assert world.dead()[0]["last_result"] == "status 307 to /round"


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest",
        "http://other.test/",
        "https://endpoint.test/",
        "//127.0.0.1/",
        "http://[::1]/",
    ],
)
async def test_a_redirect_elsewhere_is_blocked(location: str) -> None:
    async with running(FixedRegistry(subscription(follow_redirects=True, retry=RetryPolicyOf()))) as world:
        world.transport.answer = lambda *_: (0.0, Response(307, location=location))
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        assert len(world.transport.sent) == 1
        assert world.dead()[0]["last_result"].startswith("blocked: status 307, not followed: ")
        assert world.value("attempts_total", outcome="blocked", code_class="none") == 1


async def test_what_the_egress_proxy_stopped_is_tried_again_without_using_up_the_schedule() -> None:
    async with running(FixedRegistry(subscription(retry=RetryPolicyOf()))) as world:
        answers: Iterator[Result] = iter([*[Failure(Reason.PROXY_ERROR)] * 5, Response(200)])
        world.transport.answer = lambda *_: (0.0, next(answers))
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        assert world.dead() == []
        assert len(world.transport.sent) == 6


async def test_410_disables_the_subscription_and_dead_letters_what_else_it_was_owed() -> None:
    async with running(FixedRegistry(subscription(max_in_flight=1))) as world:
        world.transport.answer = lambda *_: (0.5, Response(410))
        for number in range(5):
            world.broker.append(event(number))
        await until(lambda: world.committed == 5)
        assert world.registry.disabled == [("sub_1", "gone")]
        assert len(world.transport.sent) == 1
        assert [dead["reason"] for dead in world.dead()] == ["gone"] * 5


async def test_what_a_paused_subscription_matches_is_dropped_for_that_reason() -> None:
    async with running(FixedRegistry(subscription(status=Status.PAUSED))) as world:
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        assert world.transport.sent == []
        assert world.value("deliveries_total", outcome="dropped_paused") == 1


async def test_a_retry_goes_to_where_the_subscription_points_by_then() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda origin, _: (0.0, Response(200 if origin.host == "new.test" else 500))
        world.broker.append(event(1))
        await until(lambda: len(world.transport.sent) == 1)
        world.registry.index = world.registry.index.replaced(subscription(url="http://new.test/"))
        await until(lambda: world.committed == 1)
        assert [origin.host for _, origin, _ in world.transport.sent] == ["endpoint.test", "new.test"]


async def test_a_retry_for_a_deleted_subscription_is_dropped() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda *_: (0.0, Response(500))
        world.broker.append(event(1))
        await until(lambda: len(world.transport.sent) == 1)
        world.registry.index = world.registry.index.without("sub_1")
        await until(lambda: world.committed == 1)
        assert world.value("deliveries_total", outcome="dropped_deleted") == 1


async def test_a_host_gets_no_more_at_a_time_than_its_limit_and_others_do_not_wait_for_it() -> None:
    registry = FixedRegistry(
        subscription("slow", "http://slow.test/", max_in_flight=100),
        subscription("fast", "http://fast.test/", max_in_flight=100),
    )
    async with running(registry, connections_per_host=4, max_queue_wait=3600.0) as world:
        world.transport.answer = lambda origin, _: (
            10.0 if origin.host == "slow.test" else 0.01,
            Response(200),
        )
        for number in range(100):
            world.broker.append(event(number))
        await asyncio.sleep(3)
        sent = [origin.host for _, origin, _ in world.transport.sent]
        assert sent.count("fast.test") == 100
        assert sent.count("slow.test") == 4
        assert world.value("deliveries_queued") == 96
        assert world.transport.peak[Origin("http", "fast.test", 80)] == 4


async def test_at_the_cap_nothing_more_is_consumed_but_the_group_still_hears_from_this_member() -> None:
    async with running(
        FixedRegistry(subscription(max_in_flight=1000)), max_in_flight=100, max_queue_wait=3600.0
    ) as world:
        world.transport.answer = lambda *_: (30.0, Response(200))
        for number in range(500):
            world.broker.append(event(number))
        consumer = world.broker.consumers[0]
        await until(lambda: world.value("deliveries_in_flight") == 100)
        polls = consumer.polls
        await asyncio.sleep(10)
        assert world.value("deliveries_in_flight") == 100
        assert world.value("consumption_paused") == 1
        assert consumer.paused == {EVENTS}
        assert consumer.polls >= polls + 15
        await until(lambda: world.committed == 500, within=2000)
        assert consumer.paused == set()
        assert len(world.transport.sent) == 500


async def test_at_the_cap_nobody_waits_for_what_is_dropped_as_soon_as_it_is_looked_at() -> None:
    async with running(FixedRegistry(subscription(status=Status.PAUSED)), max_in_flight=5) as world:
        for number in range(100):
            world.broker.append(event(number))
        await until(lambda: world.committed == 100)
        assert world.value("deliveries_total", outcome="dropped_paused") == 100
        assert world.value("deliveries_in_flight") == 0


async def test_the_cap_holds_within_the_fan_out_of_one_event() -> None:
    registry = FixedRegistry(*(subscription(f"s{n}", f"http://h{n}.test/") for n in range(300)))
    async with running(registry, max_in_flight=50) as world:
        world.transport.answer = lambda *_: (1.0, Response(200))
        world.broker.append(event(1))
        peak = 0.0
        while world.committed != 1:
            peak = max(peak, world.value("deliveries_in_flight") or 0)
            await asyncio.sleep(0.05)
        assert peak == 50
        assert len({origin.host for _, origin, _ in world.transport.sent}) == 300


async def test_bytes_in_flight_are_capped_too() -> None:
    async with running(FixedRegistry(subscription(max_in_flight=1000)), max_in_flight_bytes=1 << 20) as world:
        world.transport.answer = lambda *_: (1.0, Response(200))
        for number in range(40):
            world.broker.append(event(number, pad="x" * 100_000))
        peak = 0.0
        while world.committed != 40:
            peak = max(peak, world.value("deliveries_in_flight_bytes") or 0)
            await asyncio.sleep(0.05)
        assert 1 << 20 <= peak <= (1 << 20) + 101_000


async def test_a_partition_that_comes_back_is_not_delivered_a_second_time() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda _, exchange: (
            (20.0 if b"evt_0\r" in exchange.request else 0.001),
            Response(200),
        )
        for number in range(10):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) == 10)
        await world.broker.consumers[0].assign([EVENTS])
        await until(lambda: world.committed == 10)
        assert len(world.transport.sent) == 10
        assert world.value("events_skipped_total", reason="seen") == 10
        assert world.value("rebalances_total") == 2


async def test_of_a_lost_partition_nothing_more_is_sent_or_committed() -> None:
    other = TopicPartition("events", 1)
    registry = FixedRegistry(subscription(max_in_flight=1))
    async with running(registry, MemoryBroker(EVENTS, other)) as world:
        world.transport.answer = lambda *_: (7.0, Response(500))
        for number in range(5):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) == 1)
        await world.broker.consumers[0].assign([other])
        await asyncio.sleep(8)
        assert len(world.transport.sent) == 1
        assert world.committed == 0
        assert world.value("deliveries_in_flight") == 0
        assert world.value("deliveries_held") == 0


async def test_a_partition_that_somebody_else_took_further_is_read_from_there() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda *_: (0.001, Response(500))
        for number in range(3):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) == 3)
        await world.broker.consumers[0].assign([])
        for number in range(3, 8):
            world.broker.append(event(number))
        world.broker.committed[EVENTS] = 6
        world.transport.answer = lambda *_: (0.001, Response(200))
        await world.broker.consumers[0].assign([EVENTS])
        await until(lambda: world.committed == 8)
        assert len(world.transport.sent) == 5


async def test_a_refused_or_failed_commit_loses_nothing() -> None:
    async with running(FixedRegistry(subscription())) as world:
        await until(lambda: bool(world.broker.consumers) and world.engine._events.assigned)
        world.broker.commit_errors = [CommitRefused("rebalancing"), BrokerUnavailable("away")]
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        assert world.value("commits_total", result="refused") == 1
        assert world.value("commits_total", result="failed") == 1
        assert world.value("commits_total", result="ok") == 1


async def test_a_rebalance_lets_attempts_end_and_commits_them() -> None:
    async with running(FixedRegistry(subscription(max_in_flight=2))) as world:
        world.transport.answer = lambda *_: (0.7, Response(200))
        for number in range(10):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) == 2)
        await world.broker.consumers[0].assign([])
        assert world.committed == 2
        assert len(world.transport.sent) == 2


async def test_stopping_finishes_what_is_queued_and_commits_it() -> None:
    world = World(FixedRegistry(subscription(max_in_flight=2)))
    world.engine.start()
    world.transport.answer = lambda *_: (0.5, Response(200))
    for number in range(20):
        world.broker.append(event(number))
    await until(lambda: len(world.transport.sent) >= 2)
    await world.engine.stop(drain=20)
    assert world.committed == 20
    assert world.broker.consumers[0].stopped


async def test_stopping_does_not_wait_for_what_takes_longer_than_the_drain() -> None:
    world = World(FixedRegistry(subscription()))
    world.engine.start()
    world.transport.answer = lambda _, exchange: (
        (0.1 if b"evt_0\r" in exchange.request else 3600.0),
        Response(200),
    )
    for number in range(3):
        world.broker.append(event(number))
    await until(lambda: len(world.transport.sent) == 3)
    started = asyncio.get_running_loop().time()
    await world.engine.stop(drain=20)
    assert asyncio.get_running_loop().time() - started == pytest.approx(20, abs=0.5)
    assert world.committed == 3
    assert [d["event_id"] for d in world.written("dispatcher.retry.parked")] == ["evt_1", "evt_2"]


def slow_and_failing() -> FixedRegistry:
    """Three subscriptions to everything: one is well, one has a single slow slot, one fails."""
    return FixedRegistry(
        subscription("well", "http://well.test/"),
        subscription("slow", "http://slow.test/", max_in_flight=1),
        subscription("failing", "http://failing.test/"),
    )


def as_their_names_say(origin: Origin, _: object) -> tuple[float, Result]:
    if origin.host == "slow.test":
        return 30.0, Response(200)
    return 0.001, Response(500 if origin.host == "failing.test" else 200)


async def test_stopping_hands_what_waits_to_the_retry_topics_so_that_no_event_is_sent_again() -> None:
    world = World(slow_and_failing(), max_queue_wait=3600.0)
    world.engine.start()
    world.transport.answer = as_their_names_say
    for number in range(5):
        world.broker.append(event(number))
    await until(lambda: world.value("deliveries_held") == 5)
    started = asyncio.get_running_loop().time()
    await world.engine.stop(drain=3)
    assert asyncio.get_running_loop().time() - started == pytest.approx(3, abs=0.5)
    assert world.committed == 5
    left = {
        topic: Counter(
            (d["subscription_id"], d["attempt"], d["reason"])
            for d in world.written(f"dispatcher.retry.{topic}")
        )
        for topic in ("parked", "30s")
    }
    assert left == {
        "parked": {
            ("slow", "0", "shutdown"): 5
        },  # of one the attempt was cut off: nobody knows whether it arrived
        "30s": {("failing", "1", "shutdown"): 5},  # a retry has a time of its own
    }
    assert world.value("deliveries_parked_total", reason="shutdown") == 10
    async with running(world.registry, world.broker) as again:
        await until(lambda: again.value("deliveries_total", outcome="delivered") == 10, within=120)
        sent = Counter(origin.host for _, origin, _ in world.transport.sent + again.transport.sent)
        assert sent == {"well.test": 5, "slow.test": 6, "failing.test": 10}


async def test_stopping_does_not_wait_for_a_broker_that_takes_no_retries() -> None:
    world = World(FixedRegistry(subscription()))
    world.engine.start()
    world.transport.answer = lambda _, exchange: (
        0.001,
        Response(500 if b"evt_1\r" in exchange.request else 200),
    )
    for number in range(3):
        world.broker.append(event(number))
    await until(lambda: world.value("deliveries_held") == 1)
    world.broker.produce_errors = [BrokerUnavailable("away")] * 100
    started = asyncio.get_running_loop().time()
    await world.engine.stop(drain=20)
    assert asyncio.get_running_loop().time() - started < 5
    assert world.committed == 1


async def test_after_a_crash_nothing_is_sent_again_that_was_acknowledged_before_the_last_commit() -> None:
    def number_of(request: bytes) -> int:
        return int(request.split(b"webhook-id: evt_")[1].split(b"\r")[0])

    def one_in_ten_fails(_: object, exchange: Exchange) -> tuple[float, Result]:
        return 0.001, Response(500 if number_of(exchange.request) % 10 == 3 else 200)

    broker = MemoryBroker()
    registry = FixedRegistry(subscription(retry=RetryPolicy((20.0,) * 5, 0.0)))
    for number in range(200):
        broker.append(event(number))
    world = World(registry, broker)
    world.engine.start()
    world.transport.answer = one_in_ten_fails
    await until(lambda: len(world.transport.sent) == 200)
    await until(lambda: world.committed == 3)
    await asyncio.sleep(2)
    # Nothing of it is stopped: as after kill -9, its commits are all that the next one has.
    position, text = broker.committed[EVENTS], broker.notes[EVENTS]
    await world.engine.stop(0)
    for number in range(200, 205):
        broker.append(event(number))
    broker.committed[EVENTS], broker.notes[EVENTS] = position, text
    broker.log.pop(TopicPartition("dispatcher.retry.30s", 0), None)  # what the stop left there
    async with running(registry, broker) as again:
        await until(lambda: broker.committed[EVENTS] == 205)
        sent = Counter(number_of(request) for _, _, request in again.transport.sent)
        assert sent == dict.fromkeys([*range(3, 200, 10), *range(200, 205)], 1)
        assert again.value("events_skipped_total", reason="seen") == 177


async def test_what_was_owed_before_a_crash_is_kept_where_its_subscription_was_paused_meanwhile() -> None:
    """The next process reads the events again. Its commit's note tells that a former one had taken them up."""
    broker = MemoryBroker()
    sub = subscription(retry=RetryPolicy((20.0,) * 5, 0.0))
    for number in range(10):
        broker.append(event(number))
    world = World(FixedRegistry(sub), broker)
    world.engine.start()
    world.transport.answer = lambda _, exchange: (
        0.001,
        Response(500 if b"evt_3\r" in exchange.request or b"evt_5\r" in exchange.request else 200),
    )
    await until(lambda: world.value("deliveries_held") == 2)
    await until(lambda: world.committed == 3)
    await asyncio.sleep(2)
    left = broker.committed[EVENTS], broker.notes[EVENTS]
    await world.engine.stop(0)
    broker.committed[EVENTS], broker.notes[EVENTS] = left
    broker.log.pop(TopicPartition("dispatcher.retry.30s", 0), None)
    broker.append(event(10))  # it may have been taken up right before the end: nobody can tell
    async with running(FixedRegistry(sub.with_status(Status.PAUSED)), broker) as again:
        await until(lambda: broker.committed[EVENTS] == 11)
        broker.append(event(11))  # it wasn't there then
        await until(lambda: broker.committed[EVENTS] == 12)
        assert again.transport.sent == []
        kept = [d["event_id"] for d in again.written("dispatcher.retry.parked")]
        assert kept == ["evt_3", "evt_5", "evt_10"]
        assert again.value("deliveries_total", outcome="dropped_paused") == 1


async def killed(world: World) -> None:
    """Nothing of it is committed or written from now on."""
    committed, notes = dict(world.broker.committed), dict(world.broker.notes)
    logs = {partition: list(log) for partition, log in world.broker.log.items()}
    await world.engine.stop(0)
    world.broker.committed, world.broker.notes = committed, notes
    world.broker.log.clear()
    world.broker.log.update(logs)


async def test_what_was_taken_up_right_before_a_crash_is_owed_to_whom_it_was_owed_then() -> None:
    """Between two commits nothing else tells that it was taken up."""
    broker = MemoryBroker()
    sub = subscription()
    world = World(FixedRegistry(sub), broker, breaker_threshold=0)
    world.engine.start()
    world.transport.answer = lambda *_: (0.001, Response(500))
    await until(lambda: world.committed == 0)
    commits = len(broker.commits)
    for number in range(3000):  # more than a start reserves
        broker.append(event(number))
    await until(lambda: len(sent_ids(world)) > 2500, within=0.9)
    assert len(broker.commits) - commits < 5, "and not with every batch"
    attempted = set(sent_ids(world))
    await killed(world)
    async with running(FixedRegistry(sub.with_status(Status.PAUSED)), broker) as again:
        await until(lambda: broker.committed[EVENTS] == 3000)
        kept = {d["event_id"] for d in again.written("dispatcher.retry.parked")}
        assert attempted <= kept


async def test_a_partition_given_up_in_good_order_leaves_nothing_in_doubt() -> None:
    """What comes after it was matched by its next owner only, whose subscription is paused."""
    broker = MemoryBroker()
    sub = subscription()
    async with running(FixedRegistry(sub), broker) as world:
        world.broker.append(event(0))
        await until(lambda: world.committed == 1)
        await asyncio.sleep(5)  # nothing has changed since the last commit
        await broker.consumers[0].assign([])
        note = read_note("events", 0, 1, broker.notes[EVENTS])
        assert note.reserved == 1
        broker.append(event(1))
        world.registry.index = Index([sub.with_status(Status.PAUSED)])
        await broker.consumers[0].assign([EVENTS])
        await until(lambda: world.committed == 2)
        assert world.value("deliveries_total", outcome="dropped_paused") == 1
        # It has come back: the reader may go on.
        assert (read_note("events", 0, 2, broker.notes[EVENTS]).reserved or 0) > 2


async def test_a_stop_leaves_nothing_in_doubt() -> None:
    broker = MemoryBroker()
    async with running(FixedRegistry(subscription()), broker) as world:
        world.broker.append(event(0))
        await until(lambda: world.committed == 1)
    assert read_note("events", 0, 1, broker.notes[EVENTS]).reserved == 1


async def test_a_coordinator_that_is_away_holds_nothing_up_for_longer_than_a_moment() -> None:
    broker = MemoryBroker()
    async with running(FixedRegistry(subscription()), broker) as world:
        await until(lambda: world.committed == 0)

        async def never(*_: Any) -> None:
            await asyncio.sleep(3600)

        broker.consumers[0].commit = never  # type: ignore[method-assign,assignment]
        for number in range(20_000):
            broker.append(event(number))
        begin = now()
        await until(lambda: world.metrics.delivered == 20_000)
        assert now() - begin < 5


async def life_until_a_crash(registry: FixedRegistry, broker: MemoryBroker) -> Counter[str]:
    """One engine that leaves nothing but its last commit; returns how much each host was sent."""
    world = World(registry, broker)
    world.engine.start()
    world.transport.answer = as_their_names_say
    await until(lambda: world.value("deliveries_held") == 5)
    await asyncio.sleep(2)
    left = broker.committed[EVENTS], broker.notes[EVENTS]
    await world.engine.stop(0)
    # A stop commits and leaves retries; a crash does not.
    broker.committed[EVENTS], broker.notes[EVENTS] = left
    broker.log.pop(TopicPartition("dispatcher.retry.30s", 0), None)
    return Counter(origin.host for _, origin, _ in world.transport.sent)


async def test_after_a_crash_an_event_goes_only_to_those_who_have_not_had_it() -> None:
    broker = MemoryBroker()
    for number in range(5):
        broker.append(event(number))
    registry = slow_and_failing()
    first = await life_until_a_crash(registry, broker)
    assert first == {"well.test": 5, "slow.test": 1, "failing.test": 5}
    assert broker.committed[EVENTS] == 0
    for _ in range(2):
        again = await life_until_a_crash(registry, broker)
        assert again == {"slow.test": 1, "failing.test": 5}


async def test_a_broker_that_takes_no_such_note_gets_shorter_ones() -> None:
    async with running(FixedRegistry(subscription(retry=RetryPolicy((25.0,), 0.0)))) as world:
        world.transport.answer = lambda _, exchange: (
            0.001,
            Response(
                500
                if zlib.crc32(exchange.request.split(b"\r\nwebhook-id: ")[1].split(b"\r")[0]) % 5 == 0
                else 200
            ),
        )
        for number in range(200):
            world.broker.append(event(number))
        world.broker.commit_errors = [MetadataTooLarge("offset metadata too large")]
        await until(lambda: bool(world.broker.commits))
        first = read_note("events", 0, 0, world.broker.notes[EVENTS]).done
        assert 1 <= len(first) < 30
        for number in range(200, 205):
            world.broker.append(event(number))
        world.broker.commit_errors = [MetadataTooLarge("offset metadata too large")] * 10
        await until(lambda: not world.broker.commit_errors)
        await until(lambda: world.committed == 205, within=60)


async def test_what_is_done_is_committed_also_while_the_lowest_owed_offset_does_not_move() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda _, exchange: (
            0.001,
            Response(500 if b"evt_0\r" in exchange.request else 200),
        )
        world.broker.append(event(0))
        await until(lambda: world.value("deliveries_held") == 1)
        for number in range(1, 4):
            world.broker.append(event(number))
            await asyncio.sleep(1.1)
            assert read_note("events", 0, 0, world.broker.notes[EVENTS]).done == ((1, number + 1),)
        commits = len(world.broker.commits)
        await asyncio.sleep(1)
        assert len(world.broker.commits) == commits, "nothing new, no commit"


async def test_a_partition_that_comes_back_from_somebody_who_worked_on_it_is_not_sent_what_they_sent() -> (
    None
):
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda *_: (0.001, Response(500))
        for number in range(4):
            world.broker.append(event(number))
        await until(lambda: world.value("deliveries_held") == 4)
        # Frozen meanwhile, it was never told that another had the partition.
        world.broker.commit_errors = [CommitRefused("somebody else has it")]
        world.broker.committed[EVENTS] = 0
        world.broker.notes[EVENTS] = pack("events", 0, 0, [(1, 3)]).text
        world.transport.answer = lambda *_: (0.001, Response(200))
        sent = len(world.transport.sent)
        await world.broker.consumers[0].assign([EVENTS])
        await until(lambda: world.committed == 4)
        await asyncio.sleep(10)
        assert [b"evt_0\r" in request for _, _, request in world.transport.sent[sent:]] == [True, False]
        assert world.value("deliveries_in_flight") == 0


async def test_lanes_that_fell_silent_are_dropped() -> None:
    registry = FixedRegistry(*(subscription(f"s{n}", f"http://h{n}.test/") for n in range(50)))
    async with running(registry) as world:
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        assert world.value("lanes") == 50
        await asyncio.sleep(120)
        assert world.value("lanes") == 0
        # And made anew when there is something for them.
        world.broker.append(event(2))
        await until(lambda: world.committed == 2)
        assert world.value("lanes") == 50
        await asyncio.sleep(120)
        assert world.value("lanes") == 0


async def test_what_goes_to_the_same_origin_goes_by_the_same_pool_until_that_is_dropped() -> None:
    registry = FixedRegistry(
        subscription("a", "http://one.test/a"),
        subscription("b", "http://one.test/b"),
        subscription("c", "http://two.test/"),
    )
    async with running(registry) as world:
        for number in range(5):
            world.broker.append(event(number))
            await until(lambda expected=number + 1: world.committed == expected)  # type: ignore[misc]
        assert [pool.origin.host for pool in world.transport.pools] == ["one.test", "two.test"]
        world.transport.pools[0].dropped = True
        world.broker.append(event(5))
        await until(lambda: world.committed == 6)
        assert [pool.origin.host for pool in world.transport.pools[2:]] == ["one.test"]
        assert len(world.transport.sent) == 18


async def test_what_was_queued_when_its_subscription_got_a_client_certificate_goes_with_it() -> None:
    """And by no pool that was found without one."""
    certificate = ClientCertificate("client.pem")
    registry = FixedRegistry(subscription(max_in_flight=1))
    async with running(registry) as world:
        world.transport.answer = lambda *_: (1.0, Response(200))
        for number in range(3):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) == 1)
        registry.index = registry.index.replaced(subscription(max_in_flight=1, certificate=certificate))
        await until(lambda: world.committed == 3)
        assert [pool.certificate for pool in world.transport.pools] == [None, certificate, certificate]


async def test_it_is_not_ready_before_partitions_are_assigned() -> None:
    world = World(FixedRegistry())
    assert world.engine.problems() == ["no partitions have been assigned yet"]
    world.engine.start()
    await asyncio.sleep(0.1)
    assert world.engine.problems() == []
    await world.engine.stop(0)
    assert world.engine.problems() == ["the dispatcher is stopping"]


ELSEWHERE = TopicPartition("events", 1)


async def test_records_polled_before_their_partition_left_and_came_back_do_not_pass_for_its_new_ones() -> (
    None
):
    """A batch waits behind another partition's at the cap; its partition goes and comes meanwhile."""

    def named(number: int, kind: str) -> bytes:
        return f'{{"id": "evt_{kind}{number}", "type": "test.{kind}"}}'.encode()

    registry = FixedRegistry(
        subscription("a", "http://a.test/", event_types=("test.a",)),
        subscription("b", "http://b.test/", event_types=("test.b",)),
    )
    broker = MemoryBroker(EVENTS, ELSEWHERE)
    async with running(registry, broker, max_in_flight=4) as world:
        world.transport.answer = lambda *_: None
        broker.append(named(0, "b"), partition=ELSEWHERE)
        await until(lambda: len(world.transport.sent) == 1)
        for number in range(6):
            broker.append(named(number, "a"), partition=EVENTS)
        for number in range(1, 5):
            broker.append(named(number, "b"), partition=ELSEWHERE)
        await until(lambda: world.value("consumption_paused") == 1)
        await broker.consumers[0].assign([EVENTS])
        await asyncio.sleep(0.1)
        await broker.consumers[0].assign([EVENTS, ELSEWHERE])
        world.transport.sent.clear()
        world.transport.answer = lambda *_: (0.001, Response(200))
        world.transport.end(lambda request: Response(500 if b"evt_b0\r" in request else 200))
        await until(lambda: broker.committed.get(ELSEWHERE) == 5, within=700)
        assert any(b"webhook-id: evt_b0\r" in request for _, _, request in world.transport.sent)


async def test_room_that_comes_right_after_a_rebalance_is_used() -> None:
    async with running(FixedRegistry(subscription()), max_in_flight=20) as world:
        await asyncio.sleep(0.1)
        await world.engine._events.on_revoked([EVENTS])
        for number in range(100):
            world.broker.append(event(number))
        await until(lambda: world.value("consumption_paused") == 1)
        await world.engine._events.on_assigned({EVENTS: Position(0)})
        await until(lambda: world.committed == 100)
        assert world.broker.consumers[0].paused == set()


async def test_a_rebalance_within_the_poll_of_a_paused_member_loses_nothing() -> None:
    async with running(FixedRegistry(subscription(max_in_flight=32)), max_in_flight=4) as world:
        world.transport.answer = lambda *_: (2.0, Response(200))
        for number in range(40):
            world.broker.append(event(number))
        await until(lambda: world.value("consumption_paused") == 1)
        consumer = world.broker.consumers[0]
        poll = consumer.poll
        rebalanced = False

        async def rebalancing_poll(timeout: float, limit: int) -> Any:
            nonlocal rebalanced
            if timeout == 0 and not rebalanced:
                rebalanced = True
                await consumer.assign([EVENTS])
            return await poll(timeout, limit)

        consumer.poll = rebalancing_poll  # type: ignore[method-assign]
        await until(lambda: world.committed == 40, within=300)
        assert rebalanced
        delivered = {
            request.split(b"webhook-id: ")[1].split(b"\r")[0] for _, _, request in world.transport.sent
        }
        assert len(delivered) == 40


async def test_what_is_no_event_is_held_to_the_caps_too() -> None:
    async with running(FixedRegistry(), max_in_flight=10) as world:
        world.broker.produce_errors = [BrokerUnavailable("away")] * 5
        for _ in range(200):
            world.broker.append(b"no event")
        await asyncio.sleep(3)
        assert world.value("deliveries_in_flight") == 10
        await until(lambda: world.committed == 200)


async def test_stopping_in_the_middle_of_a_rebalance_still_drains() -> None:
    world = World(FixedRegistry(subscription(max_in_flight=1)))
    world.engine.start()
    world.transport.answer = lambda *_: (0.05, Response(200))
    for number in range(10):
        world.broker.append(event(number))
    await until(lambda: len(world.transport.sent) >= 1)
    await world.engine._events.on_revoked([EVENTS])
    stopping = Tasks().start(world.engine.stop(20), "stop")
    await asyncio.sleep(0.1)
    started = asyncio.get_running_loop().time()
    await world.engine._events.on_assigned({EVENTS: Position(world.committed or 0)})
    await stopping
    assert asyncio.get_running_loop().time() - started < 2
    assert world.committed == 10


async def test_the_time_limit_of_one_rebalance_does_not_end_the_next_one() -> None:
    async with running(FixedRegistry(subscription())) as world:
        await asyncio.sleep(0.1)
        await world.broker.consumers[0].assign([EVENTS])
        await asyncio.sleep(9)
        await world.engine._events.on_revoked([EVENTS])
        await asyncio.sleep(2)
        world.broker.append(event(1))
        await asyncio.sleep(2)
        assert world.transport.sent == []
        await asyncio.sleep(8)
        assert len(world.transport.sent) == 1, "without an assignment, deliveries go on after the limit"


async def test_a_slow_endpoint_holds_a_rebalance_back_for_a_second_only() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda *_: (14.0, Response(200))
        world.broker.append(event(1))
        await until(lambda: len(world.transport.sent) == 1)
        started = asyncio.get_running_loop().time()
        await world.broker.consumers[0].assign([EVENTS])
        assert asyncio.get_running_loop().time() - started < 1.5


async def test_what_one_tenant_was_owed_is_not_sent_to_another_that_got_the_subscription_id() -> None:
    async with running(FixedRegistry(subscription("x", "http://acme.test/", tenant="acme"))) as world:
        world.transport.answer = lambda *_: (0.01, Response(500))
        world.broker.append(event(1, tenant="acme"))
        await until(lambda: world.value("deliveries_held") == 1)
        world.registry.index = Index([subscription("x", "http://globex.test/", tenant="globex")])
        await until(lambda: world.committed == 1)
        assert [origin.host for _, origin, _ in world.transport.sent] == ["acme.test"]


async def test_thousands_that_are_dropped_at_once_do_not_hold_up_the_loop() -> None:
    async with running(FixedRegistry(subscription(max_in_flight=1)), max_in_flight=10_000) as world:
        world.transport.answer = lambda *_: None
        for number in range(3000):
            world.broker.append(event(number))
        await until(lambda: world.value("deliveries_queued") == 2999)
        world.registry.index = Index()
        world.transport.end(lambda _: Response(200))
        assert 0 < world.metrics.deliveries["dropped_deleted"] <= 64, "in one turn of the loop"
        await until(lambda: world.committed == 3000)
        assert world.metrics.deliveries["dropped_deleted"] == 2999


async def test_an_error_that_cannot_be_ends_the_process_instead_of_owing_for_ever() -> None:
    world = World(FixedRegistry(subscription()))

    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    world.transport.send = broken  # type: ignore[method-assign,assignment]
    world.engine.start()
    world.broker.append(event(1))
    await until(lambda: bool(world.failures))
    assert [(where, str(error)) for where, error in world.failures] == [("send", "a bug")]
    started = asyncio.get_running_loop().time()
    await world.engine.stop(20)
    assert asyncio.get_running_loop().time() - started < 1, "nothing is waited for that can't end"
    assert not world.committed


async def test_stopping_does_not_wait_for_a_broker_that_is_away() -> None:
    world = World(FixedRegistry(subscription()))
    world.engine.start()
    world.broker.append(event(1))
    await until(lambda: len(world.transport.sent) == 1)

    async def never(*_: Any) -> None:
        await asyncio.sleep(3600)

    world.broker.consumers[0].commit = never  # type: ignore[method-assign,assignment]
    started = asyncio.get_running_loop().time()
    await world.engine.stop(20)
    assert asyncio.get_running_loop().time() - started < 7


async def test_a_subscription_gets_no_more_than_its_rate_and_its_neighbour_all_it_can_take() -> None:
    registry = FixedRegistry(
        subscription("limited", "http://endpoint.test/limited", rate_limit=10.0),
        subscription("free", "http://endpoint.test/free"),
    )
    async with running(registry, max_queue_wait=60.0) as world:
        for number in range(100):
            world.broker.append(event(number))
        await until(lambda: world.committed == 100, within=30)
        times = [time for time, _, request in world.transport.sent if b" /limited " in request]
        assert len(times) == 100
        assert times[-1] - times[0] == pytest.approx(9.9, abs=0.2)
        free = [time for time, _, request in world.transport.sent if b" /free " in request]
        assert free[-1] - free[0] < 1


async def test_what_nobody_wants_is_told_with_its_tenant_and_type() -> None:
    with capture_logs() as logs:
        async with running(FixedRegistry(subscription(tenant=None))) as world:
            for number in range(3):
                world.broker.append(event(number, tenant="acme"))
            await until(lambda: world.committed == 3)
    [line] = [line for line in logs if "no subscription wants" in line["event"]]
    assert (line["tenant"], line["type"], line["event_id"]) == ("acme", "test.event", "evt_0")
