"""Attempts by the thousand against the whole zoo leave no socket, no timer, no task, and no memory."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import ssl
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dispatcher.core.request.urls import Origin
from dispatcher.transport.connection import Connection
from tests.zoo.behaviours import ALL, CAP, Behaviour, Left
from tests.zoo.harness import Exchange, Harness, post
from tests.zoo.server import Zoo

MIB = 1024 * 1024


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _sockets() -> int:
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            count += str(entry.readlink()).startswith("socket:")
        except FileNotFoundError:
            continue
    return count


class Storm:
    """Keeps `width` exchanges under way until `left` have been made. Each origin gets the same share."""

    def __init__(self, harness: Harness, origins: list[tuple[Origin, Behaviour]], width: int) -> None:
        self.harness = harness
        self.origins = origins
        self.width = width
        self.random = random.Random(0)
        self.requests = {behaviour.name: post(min(behaviour.body, 200_000)) for _, behaviour in origins}
        self.made = self.over = self.wrong = 0
        self.calm = asyncio.Event()

    async def run(self, count: int) -> None:
        self.target = self.made + count
        self.calm.clear()
        for _ in range(self.width):
            self.next()
        await self.calm.wait()

    def next(self) -> None:
        if self.made < self.target:
            self.made += 1
            origin, behaviour = self.origins[self.made % len(self.origins)]
            # Where the end of the deadline is the point there is no need to wait for long. Nor elsewhere: reused
            # out of turn, some of these endpoints never answer.
            within = 0.05 if behaviour.deadline < 1 else 1.0
            exchange = Gust(self, self.requests[behaviour.name], self.harness.loop.time() + within)
            self.harness.transport.send(origin, exchange)
            if self.random.random() < 0.02:
                self.harness.loop.call_later(0.001, self.harness.transport.cancel, exchange)


class Gust(Exchange):
    def __init__(self, storm: Storm, request: bytes, deadline: float) -> None:
        self.storm = storm
        self.request = request
        self.deadline = deadline
        self.told = 0

    def done(self, result: object) -> None:
        self.told += 1
        storm = self.storm
        storm.over += 1
        storm.wrong += self.told != 1
        if storm.over == storm.target:
            storm.calm.set()
        storm.next()


async def _storm(make: Callable[..., Harness], count: int, rounds: int) -> None:
    """So many attempts, 400 at a time: most of the time is waiting for endpoints that never answer."""
    gc.collect()
    before = _living()
    sockets = _sockets()
    tasks = len(asyncio.all_tasks())
    async with Zoo() as zoo:
        harness = make(delivery={"response_cap": CAP, "idle_timeout": "200ms", "connect_timeout": "5s"})
        origins = [
            (
                Origin("https" if behaviour.tls else "http", "127.0.0.1", await zoo.serve(behaviour.script)),
                behaviour,
            )
            for behaviour in ALL
        ]
        storm = Storm(harness, origins, 400)
        await storm.run(len(ALL) * 4)  # everything has been seen: code, caches and arenas are warm
        sizes, blocks = [], []
        for _ in range(rounds):
            await storm.run(count // rounds)
            pools = list(harness.transport._pools.values())
            counted = harness.transport.connections()
            assert counted["idle"] == sum(len(pool.idle) for pool in pools)
            assert counted["connecting"] == sum(len(pool.dials) for pool in pools)
            gc.collect()
            sizes.append(_rss())
            blocks.append(sys.getallocatedblocks())
        assert storm.wrong == 0
        assert storm.over == storm.made
        await asyncio.sleep(0.5)
        transport = harness.transport
        assert len(transport) == 0, "pools"
        assert transport.connections() == {"idle": 0, "busy": 0, "connecting": 0}
        assert transport.connections_opened == transport.connections_closed
        assert len(harness.timers) == 0
        await harness.close()
    await asyncio.sleep(0.1)
    assert _sockets() == sockets
    assert len(asyncio.all_tasks()) == tasks
    del storm
    gc.collect()
    assert _living() == before
    assert sizes[-1] - sizes[0] < 15 * MIB, [size // MIB for size in sizes]
    # An object that each attempt leaves is one block at the least.
    assert blocks[-1] - blocks[0] < count // rounds * (rounds - 1) // 2, blocks


def _living() -> Counter[str]:
    """What one kind of endpoint alone could make stay: of each kind there are a few hundred attempts only."""
    names = Counter(type(each) for each in gc.get_objects())
    return Counter({kind.__name__: names[kind] for kind in (Gust, Connection, ssl.SSLObject)})


def test_every_kind_of_end_is_in_the_storm() -> None:
    assert {behaviour.leaves for behaviour in ALL} == {Left.IDLE, Left.CLOSED}
    assert sum(behaviour.deadline < 1 for behaviour in ALL) >= 8


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_thirty_thousand_attempts_leave_nothing(make: Callable[..., Harness]) -> None:
    await _storm(make, 30_000, 5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif("DISPATCHER_TEST_LONG" not in os.environ, reason="takes minutes: DISPATCHER_TEST_LONG=1")
async def test_two_hundred_thousand_attempts_leave_nothing(make: Callable[..., Harness]) -> None:
    await _storm(make, 200_000, 10)
