"""100,000 parked for one subscription among 1,000,000 of others, all in one partition: a real broker, a real process.

It prints what it measures; what it asserts is that each comes, once.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path

import pytest
from aiohttp import web

from dispatcher.broker.base import Message, TopicSpec
from dispatcher.broker.open import open_broker
from dispatcher.core.event.decode import JSON_HEAD, Event
from dispatcher.core.retry.records import Place, delivery_headers
from dispatcher.delivery.parking import SINCE
from dispatcher.settings.groups import KafkaSettings
from tests.e2e.daemon import Daemon, Endpoint, eventually

OWN = int(os.environ.get("DISPATCHER_TEST_OWN", "100000"))
OTHERS = int(os.environ.get("DISPATCHER_TEST_OTHERS", "1000000"))
SECONDS = float(os.environ.get("DISPATCHER_TEST_SECONDS", "0"))  # that the endpoint takes for each
NEIGHBOURS = 1000
TOPIC = "d.retry.parked"
BATCH = 10_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        "DISPATCHER_TEST_LONG" not in os.environ, reason="takes minutes: DISPATCHER_TEST_LONG=1"
    ),
]


def _parked(number: int, subscription_id: str) -> Message:
    event = Event(f"evt_{number}", "test.event", None, b'{"n":%d}' % number, 1, JSON_HEAD, None)
    headers = delivery_headers(
        event,
        subscription_id,
        Place("events", 0, number),
        attempt=0,
        first_attempt_ms=None,
        last_result=None,
        reason="paused",
        due=1.0,
        parked=1,
    )
    headers.append((SINCE, b"%d" % (time.time() * 1000)))
    return Message(TOPIC, event.body, subscription_id.encode(), headers)


async def _fill(url: str) -> None:
    whose = ["own"] * OWN + [f"other_{number % NEIGHBOURS}" for number in range(OTHERS)]
    random.Random(0).shuffle(whose)
    broker = open_broker(url, KafkaSettings())
    await broker.connect()
    try:
        await broker.ensure_topics([TopicSpec("events", 1), TopicSpec(TOPIC, 1)], create=True)
        for first in range(0, len(whose), BATCH):
            batch = [_parked(number, who) for number, who in enumerate(whose[first : first + BATCH], first)]
            await broker.produce(batch)
    finally:
        await broker.close()


async def test_a_hundred_thousand_of_its_own_are_found_among_a_million_of_others(tmp_path: Path) -> None:
    clock = asyncio.get_running_loop().time
    url = f"sqlite:///{tmp_path}/log.db"
    await _fill(url)

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
            url,
            [{**own, "status": "paused"}, *others],
            topics={"prefix": "d."},
            sqlite={"partitions": 1},
            group="backlog",
        )
        begin = clock()
        await daemon.start()
        try:
            for _ in range(3000):
                if await daemon.metric("deliveries_parked_waiting", 'reason="paused"') == OWN + OTHERS:
                    break
                await asyncio.sleep(0.2)
            print(
                f"\nread {OWN + OTHERS} in {clock() - begin:.1f} s, the start included; RSS {_rss(daemon.pid)} MiB"
            )
            daemon.write_subscriptions([own, *others])
            resumed = clock()
            await eventually(lambda: len(endpoint.ids) > 0, within=60)
            print(f"the first went {clock() - resumed:.2f} s after the file that resumes it was written")
            first = clock()
            seen, peak = 0, 0
            while len(endpoint.ids) < OWN:
                assert clock() - first < 1200, f"{len(endpoint.ids)} of {OWN}"
                await asyncio.sleep(5)
                peak = max(peak, _rss(daemon.pid))
                print(f"{clock() - first:.0f} s: {len(endpoint.ids)}, {(len(endpoint.ids) - seen) / 5:.0f}/s")
                seen = len(endpoint.ids)
            print(f"{OWN} in {clock() - first:.0f} s; RSS at most {peak} MiB")
            assert set(endpoint.ids.values()) == {1}
        finally:
            await daemon.kill()


def _rss(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024
