"""Record batches, whole and broken, and what the library asks of them."""

from __future__ import annotations

import struct

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

from dispatcher.broker.base import UnreadableBatch
from dispatcher.broker.kafka.wire import records as kafka_records
from dispatcher.broker.kafka.wire.bulk import FetchAnswer

PARTITION = TopicPartition("events", 3)


NO_PRODUCER = -1


CONTROL, TRANSACTIONAL = 0x20, 0x10


ABORT = struct.pack(">hh", 0, 0)


def batch(
    offset: int,
    count: int,
    *,
    compression: int = 0,
    producer: int = NO_PRODUCER,
    flags: int = 0,
    key: bytes | None = None,
    gone: int = 0,
) -> bytes:
    """A record batch of `count` records from `offset` on; behind them compaction has taken `gone` more."""
    builder = DefaultRecordBatchBuilder(2, compression, bool(flags & TRANSACTIONAL), producer, 0, 0, 1 << 20)
    for number in range(count):
        builder.append(number, 1_700_000_000_000, key, b"value %d" % (offset + number), [])
    built = bytearray(builder.build())
    built[0:8] = offset.to_bytes(8, "big")
    attributes = int.from_bytes(built[21:23], "big") | flags
    built[21:23] = attributes.to_bytes(2, "big")
    built[23:27] = (count - 1 + gone).to_bytes(4, "big")
    return sealed(built)


def sealed(built: bytearray) -> bytes:
    """With the checksum that the library's software computes."""
    built[17:21] = calc_crc32c(bytes(built[21:])).to_bytes(4, "big")
    return bytes(built)


def damaged(built: bytes) -> bytes:
    return built[:-1] + bytes([built[-1] ^ 1])


def legacy(offset: int, count: int, *, compression: int) -> bytes:
    """A message set of format 1, whose offsets are those of a compressed one's last message."""
    builder = LegacyRecordBatchBuilder(1, compression, 1 << 20)
    for number in range(count):
        at = number if compression else offset + number
        builder.append(at, 1_700_000_000_000, None, b"value %d" % (offset + number))
    built = bytes(builder.build())
    return (offset + count - 1).to_bytes(8, "big") + built[8:] if compression else built


class State:
    """Of a partition, as far as the library's fetch results ask for it."""

    paused = False
    highwater: int | None = None

    def __init__(self, position: int) -> None:
        self.position = position

    def consumed_to(self, position: int) -> None:
        self.position = position


class Assignment:
    active = True

    def __init__(self, position: int) -> None:
        self.state = State(position)

    def state_value(self, _: TopicPartition) -> State:
        return self.state


def fetched(
    data: bytes, offset: int = 0, *, aborted: list[tuple[int, int]] | None = None, committed: bool = True
) -> kafka_records.Fetched:
    isolation = fetcher.READ_COMMITTED if committed else fetcher.READ_UNCOMMITTED
    records = kafka_records.Records(
        PARTITION, FetchAnswer(data), aborted, offset, None, None, True, isolation
    )
    return kafka_records.Fetched(
        PARTITION, assignment=Assignment(offset), partition_records=records, backoff=0
    )


def position(result: kafka_records.Fetched) -> int:
    return int(result._assignment.state.position)


def drain(result: kafka_records.Fetched, limit: int | None = None) -> list[tuple[int, bytes]]:
    taken: list[tuple[int, bytes]] = []
    while result.has_more():
        some = result.getall(limit)
        assert limit is None or len(some) <= limit
        if some:
            assert position(result) > some[-1].offset
        taken += [(record.offset, record.value) for record in some]
    return taken


def expected(*offsets: int) -> list[tuple[int, bytes]]:
    return [(offset, b"value %d" % offset) for offset in offsets]


def unreadable(result: kafka_records.Fetched, limit: int = 10) -> UnreadableBatch:
    (error,) = result.getall(limit)
    assert type(error) is UnreadableBatch
    assert not result.has_more()  # it is fetched again
    return error


def long(built: bytes, delta: int = 1_000_000) -> bytes:
    """With a head that claims more offsets than the batch has, which its checksum tells."""
    return built[:23] + delta.to_bytes(4, "big") + built[27:]
