"""A rolling upgrade on a real Kafka, under load: from an older revision to what is here. Only with DISPATCHER_TEST_UPGRADE=REVISION.

The older revision's package is taken out of git and runs with the packages that are installed here.
"""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dispatcher.broker.base import Message
from tests.e2e.daemon import Daemon, Endpoint, envelope, publish

ROOT = Path(__file__).parents[2]
REVISION = os.environ.get("DISPATCHER_TEST_UPGRADE", "")

pytestmark = [
    pytest.mark.skipif(
        not REVISION, reason="NOT TESTED: a rolling upgrade; DISPATCHER_TEST_UPGRADE=REVISION does"
    ),
    pytest.mark.timeout(600),
]


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A folder with the package as it was."""
    archive = subprocess.run(
        ["git", "archive", REVISION, "dispatcher"], cwd=ROOT, capture_output=True, check=True
    )
    folder = tmp_path / "older"
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


class Load:
    """Publishes all the time, and knows what it has published."""

    def __init__(self, url: str, topic: str) -> None:
        self.ids: set[str] = set()
        self._url = url
        self._topic = topic
        self._task = asyncio.ensure_future(self._run())  # noqa: TID251 - ended by `stop`
        self._over = False

    async def _run(self) -> None:
        while not self._over:
            made = [envelope(len(self.ids) + number) for number in range(50)]
            await publish(self._url, [Message(self._topic, body, key=id_.encode()) for id_, body in made])
            self.ids |= {id_ for id_, _ in made}
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        self._over = True
        await self._task


async def test_replicas_are_replaced_one_after_the_other_and_nothing_is_lost(
    kafka: str, unique: Callable[[str], str], tmp_path: Path, older: Path
) -> None:
    topic, group, prefix, url = unique("events"), unique("group"), f"{unique('own')}.", f"kafka://{kafka}"

    def replica(name: str, path: Path | None) -> Daemon:
        folder = tmp_path / name
        folder.mkdir()
        daemon = Daemon(
            folder,
            url,
            [{"id": "all", "url": endpoint.url, "event_types": ["*"]}],
            group=group,
            topics={"events": [topic], "prefix": prefix},
        )
        if path is not None:
            daemon.environ = {"PYTHONPATH": str(path)}
        return daemon

    async def serving(daemon: Daemon) -> None:
        """Ready, and with partitions of its own: the group has taken it up."""
        await daemon.ready()
        async with asyncio.timeout(90):
            while not await daemon.total("deliveries_total"):
                await asyncio.sleep(0.1)

    async with Endpoint() as endpoint:
        replicas = [replica("a", older), replica("b", older)]
        load = Load(url, topic)
        try:
            for daemon in replicas:
                await daemon.start()
            for daemon in replicas:
                await serving(daemon)
            for number, name in enumerate(("c", "d")):
                assert await replicas[number].stop() == 0
                replicas[number] = replica(name, None)
                await replicas[number].start()
                await serving(replicas[number])
            await load.stop()
            await endpoint.received(load.ids, 90)
        finally:
            await load.stop()
            for daemon in replicas:
                await daemon.stop()
        # A clean stop commits what is done; only what is cut off at the end of the drain comes twice.
        assert sum(endpoint.ids.values()) == len(load.ids)
        for daemon in replicas:
            assert daemon.log_lines("stopped"), daemon.log()
