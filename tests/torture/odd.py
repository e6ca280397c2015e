"""Records that no producer should write, and some that look like it: each costs a dead letter at most.

header    a header whose name is no UTF-8; the client library can't write one, so a batch is changed after it was made
garbage   a value that is no JSON
broken    a CloudEvent without its type
nothing   no value and no headers, as a tombstone: nobody is owed anything
event     a CloudEvent without data, which is an event like any other
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import google_crc32c
from aiokafka import AIOKafkaProducer, errors

from dispatcher.broker.base import TopicPartition
from tests.e2e.daemon import envelope
from tests.torture.subscribers import EVENT, Published

if TYPE_CHECKING:
    from tests.torture.on_kafka import KafkaRun

_NAME, _RAW = b"Z-placeholder-Q", b"Z" + b"\xff\xfe" * 6 + b"\xffQ"
_CRC, _CHECKED = 17, 21  # where they begin in a batch of Kafka's format since 0.11
_HEADER = (_NAME.decode(), b"1")


class _Changed:
    """A builder of the library's, whose batch has another header name."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def build(self) -> bytes:
        data = bytearray(bytes(self._builder.build()).replace(_NAME, _RAW))
        data[_CRC:_CHECKED] = google_crc32c.value(bytes(data[_CHECKED:])).to_bytes(4, "big")
        return bytes(data)


async def odd(run: KafkaRun) -> None:
    """One of each kind, on partitions that chance takes."""
    producer = AIOKafkaProducer(
        bootstrap_servers=run.ground.cluster.bootstrap, acks="all", request_timeout_ms=10_000
    )
    try:
        await producer.start()
        number = len(run.published)
        event, value = envelope(number, EVENT, tenant=run.subscribers.tenant_of(number) or None)
        attributes = [("ce_specversion", b"1.0"), ("ce_source", b"/torture")]
        whole = [*attributes, ("ce_id", event.encode()), ("ce_type", EVENT.encode())]
        if (tenant := run.subscribers.tenant_of(number)) is not None:
            whole.append(("ce_tenant", tenant.encode()))
        for value_, headers, owes in (
            (value.replace(event.encode(), b"unreadable"), [_HEADER], True),
            (b"\xff\x00{", [], True),
            (b"{}", [*attributes, ("ce_id", b"untyped")], True),
            (None, [], False),
        ):
            place = await _send(run, producer, value_, headers)
            if owes:
                run.odd.add(place)
        run.enter(Published(event, run.clock(), EVENT, tenant))
        await _send(run, producer, None, whole)
    except (errors.KafkaError, OSError) as error:
        run.report.notes.append(f"not all odd records could be written: {error!r}")
    finally:
        await producer.stop()


async def _send(
    run: KafkaRun, producer: Any, value: bytes | None, headers: list[tuple[str, bytes]]
) -> tuple[str, int, int]:
    batch = producer.create_batch()
    batch.append(timestamp=int(time.time() * 1000), key=b"odd", value=value, headers=headers)
    batch.close()
    if headers == [_HEADER]:
        batch._builder = _Changed(batch._builder)
    partitions = sorted(await producer.partitions_for(run.topic))
    future = await producer.send_batch(batch, run.topic, partition=run.draw.choice(partitions))
    found = await future
    place = TopicPartition(found.topic, found.partition)
    return (*place, found.offset)
