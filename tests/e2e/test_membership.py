"""Replicas that are killed, stopped and doubled, on a real Kafka. A session is so long that nobody can wait for its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import Daemon, Endpoint, envelope, eventually
from tests.e2e.test_delivery import Stage, everything

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

# Five minutes: what a test waits for comes long before, or not at all.
PATIENT: dict[str, Any] = {"session_timeout": "5m", "rebalance_timeout": "5m", "heartbeat_interval": "500ms"}


class Replicas:
    """Several daemons of one group."""

    def __init__(self, folder: Path, kafka: str, endpoint: Endpoint) -> None:
        self.stage = Stage(folder, f"kafka://{kafka}")
        self._folder = folder
        self._endpoint = endpoint
        self.all: list[Daemon] = []
        self._published = 0

    def make(self, **kafka: Any) -> Daemon:
        folder = self._folder / f"replica{len(self.all)}"
        folder.mkdir()
        self.stage.folder = folder
        daemon = self.stage.make([everything(self._endpoint)], kafka=PATIENT | kafka)
        self.all.append(daemon)
        return daemon

    async def publish(self) -> set[str]:
        """Forty events, so that every partition gets some."""
        events = dict(envelope(number) for number in range(self._published, self._published + 40))
        self._published += 40
        await self.stage.publish(list(events.values()))
        return set(events)

    async def kill(self) -> None:
        for daemon in self.all:
            await daemon.kill()


async def all_assigned(replicas: Replicas) -> None:
    for daemon in replicas.all:
        if daemon.running:
            await daemon.ready()


@pytest.mark.parametrize("count", [1, 3])
async def test_a_killed_replica_that_is_started_again_delivers_at_once(
    tmp_path: Path, kafka: str, count: int
) -> None:
    async with Endpoint() as endpoint:
        replicas = Replicas(tmp_path, kafka, endpoint)
        try:
            for _ in range(count):
                await replicas.make().start()
            await endpoint.received(await replicas.publish(), within=60)
            await replicas.all[0].kill()
            await replicas.all[0].start()  # ready: both groups have given it its partitions
            await all_assigned(replicas)
            await endpoint.received(await replicas.publish(), within=60)
            # All of them at once, as a power cut has it.
            for daemon in replicas.all:
                await daemon.kill()
            for daemon in replicas.all:
                await daemon.start(ready=False)
            await all_assigned(replicas)
            await endpoint.received(await replicas.publish(), within=60)
        finally:
            await replicas.kill()


async def test_a_replica_that_is_stopped_leaves_its_groups_to_the_others(tmp_path: Path, kafka: str) -> None:
    async with Endpoint() as endpoint:
        replicas = Replicas(tmp_path, kafka, endpoint)
        try:
            for _ in range(2):
                await replicas.make(member_name=f"pod-{len(replicas.all)}").start()
            await endpoint.received(await replicas.publish(), within=60)
            assert await replicas.all[0].stop() == 0
            await endpoint.received(await replicas.publish(), within=60)
            await eventually_alone(replicas.all[1])
        finally:
            await replicas.kill()


async def eventually_alone(daemon: Daemon) -> None:
    """Wait until it has every partition of both groups."""

    def last() -> dict[bool, int]:
        lines = daemon.log_lines("partitions assigned")
        return {line["group"].endswith(".retry"): line["partitions"] for line in lines}

    await eventually(lambda: last() == {False: 4, True: 28}, 60, lambda: str(last()))


async def test_of_two_living_processes_with_one_name_the_second_ends_and_says_why(
    tmp_path: Path, kafka: str
) -> None:
    async with Endpoint() as endpoint:
        replicas = Replicas(tmp_path, kafka, endpoint)
        try:
            first = replicas.make(member_name="one")
            await first.start()
            second = replicas.make(member_name="one")
            await second.start(ready=False)
            assert await second.ended(within=60) != 0
            assert "another living process has the member name 'one'" in second.log()
            assert "kafka.member_name" in second.log()
            await first.ready()
            await endpoint.received(await replicas.publish(), within=60)
        finally:
            await replicas.kill()
