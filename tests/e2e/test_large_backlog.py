"""100,000 parked for one subscription among 1,000,000 of others, all in one partition: real brokers, a real process.

It prints how long things take; what it asserts is that each comes once, the oldest first, beside fresh ones, in bounded memory.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from pathlib import Path

import pytest
from aiohttp import web

from dispatcher.broker.base import Message, TopicSpec
from dispatcher.broker.open import open_broker
from dispatcher.core.event.decode import JSON_HEAD, Event
from dispatcher.core.retry.records import Source, delivery_headers
from dispatcher.delivery.parking import SINCE
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import KafkaSettings
from tests.e2e.daemon import Daemon, Endpoint, envelope, eventually
from tests.e2e.test_delivery import broker_url

OWN = int(os.environ.get("DISPATCHER_TEST_OWN", "100000"))
OTHERS = int(os.environ.get("DISPATCHER_TEST_OTHERS", "1000000"))
SECONDS = float(os.environ.get("DISPATCHER_TEST_SECONDS", "0"))  # that the endpoint takes for each
NEIGHBOURS = 1000
BATCH = 10_000
MOST_MIB = 350
DISPLACED = 1000  # places: what is read together may come in any order, and a lane has some in flight
FRESH = 50

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(
        "DISPATCHER_TEST_LONG" not in os.environ, reason="takes minutes: DISPATCHER_TEST_LONG=1"
    ),
]


__all__ = ["broker_url"]


def _parked(topic: str, number: int, subscription_id: str) -> Message:
    event = Event(f"evt_{number}", "test.event", None, b'{"n":%d}' % number, 1, JSON_HEAD, None)
    headers = delivery_headers(
        event,
        subscription_id,
        Source("events", 0, number),
        attempt=0,
        first_attempt_ms=None,
        last_result=None,
        reason="paused",
        due=1.0,
        parked=1,
    )
    headers.append((SINCE, b"%d" % (time.time() * 1000)))
    return Message(topic, event.body, subscription_id.encode(), headers)


async def _fill(url: str, name: str) -> None:
    topic = f"{name}.retry.parked"
    whose = ["own"] * OWN + [f"other_{number % NEIGHBOURS}" for number in range(OTHERS)]
    random.Random(0).shuffle(whose)
    broker = open_broker(url, KafkaSettings())
    await broker.connect()
    try:
        await broker.ensure_topics([TopicSpec(f"{name}.events", 1), TopicSpec(topic, 1)], create=True)
        for first in range(0, len(whose), BATCH):
            numbered = enumerate(whose[first : first + BATCH], first)
            await broker.produce([_parked(topic, number, who) for number, who in numbered])
    finally:
        await broker.close()


async def _publish_fresh(daemon: Daemon, endpoint: Endpoint) -> None:
    """Some events for the same subscription, while the first half of what was parked for it is delivered."""
    for number in range(FRESH):
        while len(endpoint.ids) < number * OWN // (2 * FRESH):
            await asyncio.sleep(0.02)
        event_id, event = envelope(number, "never.own")
        await daemon.post_event(event.replace(event_id.encode(), b"fresh_%d" % number))


async def test_a_hundred_thousand_of_its_own_are_found_among_a_million_of_others(
    tmp_path: Path, broker_url: str
) -> None:
    clock = asyncio.get_running_loop().time
    name = f"backlog{uuid.uuid4().hex[:8]}"
    begin = clock()
    await _fill(broker_url, name)
    print(f"\nwrote {OWN + OTHERS} in {clock() - begin:.0f} s")

    async def answer(_: web.Request) -> web.Response:
        await asyncio.sleep(SECONDS)
        return web.Response()

    async with Endpoint(answer) as endpoint:
        own = {"id": "own", "tenant": "*", "url": endpoint.url, "event_types": ["never.own"]}
        others = [
            {
                "id": f"other_{number}",
                "tenant": "*",
                "url": endpoint.url,
                "event_types": ["never.other"],
                "status": "paused",
            }
            for number in range(NEIGHBOURS)
        ]
        daemon = Daemon(
            tmp_path,
            broker_url,
            [{**own, "status": "paused"}, *others],
            topics={"events": [f"{name}.events"], "prefix": f"{name}."},
            sqlite={"partitions": 1},
            group=name,
        )
        begin = clock()
        await daemon.start()
        try:
            await _all_read(daemon)
            took = clock() - begin
            print(
                f"read {OWN + OTHERS} in {took:.1f} s, the start included; RSS {_rss(daemon.pid) >> 20} MiB"
            )
            daemon.write_subscriptions([own, *others])
            resumed = clock()
            await eventually(lambda: len(endpoint.ids) > 0, within=60)
            print(f"the first went {clock() - resumed:.2f} s after the file that resumes it was written")
            first = clock()
            publishing = Tasks().start(_publish_fresh(daemon, endpoint), "fresh")
            seen, peak = 0, 0
            while len(endpoint.ids) < OWN + FRESH:
                assert clock() - first < 1200, f"{len(endpoint.ids)} of {OWN + FRESH}"
                await asyncio.sleep(5)
                peak = max(peak, _rss(daemon.pid))
                print(f"{clock() - first:.0f} s: {len(endpoint.ids)}, {(len(endpoint.ids) - seen) / 5:.0f}/s")
                seen = len(endpoint.ids)
            await publishing
            print(f"{OWN} in {clock() - first:.0f} s; RSS at most {peak >> 20} MiB")
        finally:
            await daemon.kill()
    assert set(endpoint.ids.values()) == {1}
    arrived = list(endpoint.ids)
    fresh = [place for place, event_id in enumerate(arrived) if event_id.startswith("fresh_")]
    parked = [int(event_id.removeprefix("evt_")) for event_id in arrived if event_id.startswith("evt_")]
    displaced = max(abs(place - rank) for place, rank in enumerate(_ranks(parked)))
    print(f"displaced by at most {displaced} places; fresh ones came at {fresh[0]} to {fresh[-1]}")
    assert len(fresh) == FRESH
    assert displaced <= DISPLACED
    assert fresh[-1] < OWN, "they come beside what is parked, and not after it"
    assert peak < MOST_MIB << 20


async def _all_read(daemon: Daemon) -> None:
    waiting = 0.0
    for _ in range(3000):
        waiting = await daemon.metric("deliveries_parked_waiting", 'reason="paused"')
        if waiting == OWN + OTHERS:
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"{waiting:.0f} of {OWN + OTHERS} are known")


def _ranks(numbers: list[int]) -> list[int]:
    """Of each its place in ascending order."""
    places = {number: place for place, number in enumerate(sorted(numbers))}
    return [places[number] for number in numbers]


def _rss(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024
