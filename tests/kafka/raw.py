"""Bytes as no client of ours writes them: into a partition, and into a broker's log on its disk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from aiokafka import AIOKafkaClient, TopicPartition, errors
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

Raw = tuple[bytes | None, bytes | None, Sequence[tuple[bytes, bytes | None]]]
"""Key, value and headers, whose names are bytes."""


def record_batch(records: Sequence[Raw], timestamp: int) -> bytes:
    """One batch of them, its checksum right."""
    names = {name for _, _, headers in records for name, _ in headers}
    # A stand-in of the same length for each name that is no UTF-8, so that the library builds the rest.
    stands = {}
    for number, name in enumerate(sorted(names)):
        try:
            stands[name] = name.decode()
        except UnicodeDecodeError:
            stands[name] = f"~{number}".ljust(len(name), "^")
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 20)
    for number, (key, value, headers) in enumerate(records):
        builder.append(number, timestamp, key, value, [(stands[name], held) for name, held in headers])
    built = bytearray(builder.build())
    for name, stand in stands.items():
        if stand.encode() != name:
            built = built.replace(stand.encode(), name)
    built[17:21] = calc_crc32c(bytes(built[21:])).to_bytes(4, "big")
    return bytes(built)


async def write(bootstrap: str, topic: str, partition: int, batch: bytes) -> int:
    """Have the leader append the batch; the offset of its first record."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    await client.bootstrap()
    try:
        await client.set_topics([topic])
        leader = client.cluster.leader_for_partition(TopicPartition(topic, partition))
        request = ProduceRequest(
            transactional_id=None, required_acks=-1, timeout=10_000, topics=[(topic, [(partition, batch)])]
        )
        response = await client.send(leader, request)
        ((_, ((_, code, offset, *_),)),) = response.topics
        error = errors.for_code(code)
        if error is not errors.NoError:
            raise error
        return int(offset)
    finally:
        await client.close()


def damage(data: Path, topic: str, partition: int, needle: bytes) -> None:
    """Change the bytes `needle` in the partition's log: its batch has a wrong checksum from then on. The broker must be down."""
    (log,) = (data / f"{topic}-{partition}").glob("*.log")
    content = log.read_bytes()
    assert content.count(needle) == 1
    log.write_bytes(content.replace(needle, bytes(byte ^ 1 for byte in needle)))


async def commit_text(
    bootstrap: str, group: str, topic: str, partition: int, offset: int, text: bytes
) -> None:
    """Commit with this text beside it, for a group that has no members."""

    class Text(str):
        __slots__ = ()

        def encode(self, *_: object) -> bytes:  # what the library calls
            return text

        def __str__(self) -> str:
            return self

    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    await client.bootstrap()
    try:
        coordinator = None
        async with asyncio.timeout(30):
            while coordinator is None:
                with contextlib.suppress(errors.KafkaError):
                    coordinator = await client.coordinator_lookup(0, group)
                await asyncio.sleep(0.1)
        request = OffsetCommitRequest(group, -1, "", -1, [(topic, [(partition, offset, Text())])])
        response = await client.send(coordinator, request)
        ((_, ((_, code),)),) = response.topics
        assert code == 0
    finally:
        await client.close()
