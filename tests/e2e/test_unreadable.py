"""Bytes that can't be unpacked, on a real Kafka: they cost a record or their partition, never the daemon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.commands import console
from tests.e2e.daemon import Daemon, Endpoint, envelope, publish
from tests.e2e.test_delivery import Stage, everything
from tests.e2e.test_trouble import named, reaches, read_topic
from tests.kafka import raw
from tests.kafka.server import Cluster

pytestmark = pytest.mark.timeout(420)

BAD = b"Z\xff\xfeQ"
QUICK_ENOUGH: dict[str, Any] = {"request_timeout": "5s", "fetch_max_wait": "100ms"}


async def warned(daemon: Daemon, what: str) -> str:
    """Wait until a warning of /readyz names it; it is ready all the same."""
    said: list[str] = []
    async with asyncio.timeout(60):
        while not any(what in warning for warning in said):
            assert daemon.running, daemon.log()
            status, body = await daemon.get("/readyz")
            said = orjson.loads(body).get("warnings", []) if status == 200 else []
            await asyncio.sleep(0.1)
    return next(warning for warning in said if what in warning)


@pytest.mark.kafka
async def test_a_header_name_that_is_no_utf8_costs_one_record_in_every_topic(
    tmp_path: Path, kafka: str
) -> None:
    stage = Stage(tmp_path, f"kafka://{kafka}")
    ids = dict(envelope(number) for number in range(3))
    first, second, third = ids.values()
    now = int(time.time() * 1000)
    async with Endpoint() as endpoint:
        daemon = stage.make([everything(endpoint)], kafka=QUICK_ENOUGH, topics={"partitions": 1})
        try:
            await daemon.start()
            batch = raw.record_batch(
                [(b"k", first, []), (b"k", second, [(BAD, b"1")]), (b"k", third, [])], now
            )
            offset = await raw.write(kafka, stage.topic, 0, batch)
            retry, control = f"{stage.name}.d.retry.30s", f"{stage.name}.d.subscriptions"
            alone = raw.record_batch([(b"k", b"{}", [(BAD, None)])], now)
            for topic in (retry, control, f"{stage.name}.d.dead"):
                await raw.write(kafka, topic, 0, alone)
            await endpoint.received({"evt_00000000", "evt_00000002"}, within=60)
            await reaches(daemon, "dead_letters_total", 'reason="invalid"', 2)
            assert "evt_00000001" not in endpoint.ids
            assert (await daemon.get("/readyz"))[0] == 200
            assert await daemon.stop() == 0
            letters = {
                (headers["topic"], headers["offset"]): (headers, record)
                for _, record in await read_topic(stage.broker_url, f"{stage.name}.d.dead")
                if "reason" in (headers := dict(record.headers))
            }
            assert set(letters) == {(stage.topic.encode(), b"%d" % (offset + 1)), (retry.encode(), b"0")}
            headers, letter = letters[stage.topic.encode(), b"%d" % (offset + 1)]
            assert (letter.key, letter.value) == (b"k", second)
            assert orjson.loads(headers["raw_headers"] or b"") == [["Wv/+UQ==", "MQ=="]]
            # Every restart reads the control topic from its beginning.
            await daemon.start()
            assert await daemon.stop() == 0
            assert set(endpoint.ids.values()) == {1}
        finally:
            await daemon.kill()


@pytest.mark.kafka
async def test_text_beside_a_commit_that_is_no_utf8_says_nothing(tmp_path: Path, kafka: str) -> None:
    stage = Stage(tmp_path, f"kafka://{kafka}")
    ids = dict(envelope(number) for number in range(8))
    await stage.publish(list(ids.values()))
    for group, topic in ((stage.name, stage.topic),):
        await raw.commit_text(kafka, group, topic, 0, 0, b"\xff\xfe\x00")
    async with Endpoint() as endpoint:
        daemon = stage.make([everything(endpoint)], kafka=QUICK_ENOUGH)
        try:
            await daemon.start()
            await endpoint.received(set(ids), within=60)
            shown = console.dispatcher("topics", "--config", str(daemon.settings_file), cwd=tmp_path)
            assert shown.returncode == 0, shown.stderr
            assert await daemon.stop() == 0
        finally:
            await daemon.kill()


async def test_a_damaged_batch_stops_its_partition_until_it_is_skipped(
    tmp_path: Path, kafka_cluster: Callable[..., Cluster]
) -> None:
    cluster = kafka_cluster()
    (node,) = cluster.nodes
    url = f"kafka://{cluster.bootstrap}"
    stage = Stage(tmp_path, url)
    control = f"{stage.name}.d.subscriptions"
    now = int(time.time() * 1000)
    values = dict(envelope(number) for number in range(20))
    ids = list(values)
    async with Endpoint() as endpoint:
        daemon = stage.make([everything(endpoint)], kafka=QUICK_ENOUGH)

        def skip(topic: str, offset: int) -> str:
            done = console.dispatcher(
                *("topics", "skip", topic, "0", str(offset), "--config", str(daemon.settings_file)),
                cwd=tmp_path,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        try:
            await publish(url, [])
            await daemon.start()
            assert await daemon.stop() == 0
            before = raw.record_batch([(b"k", values[ids[0]], [])], now)
            doomed = raw.record_batch(
                [
                    (b"k", values[each], [(b"h", b"DAMAGED-EVENTS"[: 14 if each == ids[1] else 3])])
                    for each in ids[1:4]
                ],
                now,
            )
            after = raw.record_batch([(b"k", values[ids[4]], [])], now)
            for batch in (before, doomed, after):
                await raw.write(cluster.bootstrap, stage.topic, 0, batch)
            elsewhere = raw.record_batch([(b"k", values[ids[5]], [])], now)
            await raw.write(cluster.bootstrap, stage.topic, 1, elsewhere)
            broken = raw.record_batch([(b"sub_x", b"DAMAGED-CONTROL", [])], now)
            where = await raw.write(cluster.bootstrap, control, 0, broken)
            node.stop()
            for topic, needle in ((stage.topic, b"DAMAGED-EVENTS"), (control, b"DAMAGED-CONTROL")):
                raw.damage(node.directory / "data", topic, 0, needle)
            node.start()

            # The control topic first: without it nobody knows who wants what.
            await daemon.start(ready=False)
            await named(daemon, f"dispatcher topics skip {control} 0 {where}")
            assert "Written to" in skip(control, where)
            await daemon.ready()

            # Then the events: the other partition and what is before it are delivered.
            await endpoint.received({ids[0], ids[5]}, within=60)
            warning = await warned(daemon, f"`dispatcher topics skip {stage.topic} 0 1`")
            assert "checksum" in warning
            assert ids[4] not in endpoint.ids
            refused = console.dispatcher(
                *("topics", "skip", stage.topic, "0", "0", "--config", str(daemon.settings_file)),
                cwd=tmp_path,
            )
            assert refused.returncode == 1
            assert "can be read" in refused.stderr
            said = skip(stage.topic, 2)
            assert "ends with offset 3" in said
            await endpoint.received({ids[4]}, within=60)
            assert await daemon.metric("events_skipped_total", 'reason="unreadable"') == 3
            assert not set(ids[1:4]) & endpoint.ids.keys()

            # One that starts later passes over both by itself, also after a crash.
            await daemon.kill()
            await raw.write(
                cluster.bootstrap, stage.topic, 0, raw.record_batch([(b"k", values[ids[6]], [])], now)
            )
            await daemon.start()
            await endpoint.received({ids[6]}, within=60)
            assert await daemon.stop() == 0
        finally:
            await daemon.kill()
