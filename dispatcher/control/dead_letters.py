"""The dead-letter topic as it stands, read without any store: the newest first, page by page.

A page looks back from the end of each partition, or from where the page before has stopped (its cursor). It looks at no more than `limit` offsets of each
partition, and keeps no bodies. So a page may hold fewer than `limit`, even none, and more pages follow.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from dispatcher.broker.base import (
    Broker,
    BrokerError,
    PartitionInfo,
    Record,
    TopicPartition,
    UnreadableBatch,
    UnreadableRecord,
)
from dispatcher.control.errors import Gone, Invalid, NotFound, Unavailable
from dispatcher.core.flaws import Flaw
from dispatcher.core.retry.dead_letters import InvalidDeadLetter, header, read_dead_letter
from dispatcher.core.retry.records import RetryRecord, Source, delivery_id
from dispatcher.core.text.cursors import read_cursor, write_cursor

MAX_PAGE: Final = 200
PAGE: Final = 50

_READ_BYTES: Final = 1 << 20
_DETAIL_CAP: Final = 512


class FoundDeadLetter(NamedTuple):
    """A record of the topic, without its body."""

    partition: int
    offset: int
    time_ms: int
    reason: str | None
    detail: str | None
    """Why it could not be read, or cannot be sent again."""
    body_bytes: int
    delivery: RetryRecord | None
    """None for a record that is no delivery."""
    source: Source | None

    @property
    def delivery_id(self) -> str | None:
        """Of a delivery."""
        found = self.delivery
        return None if found is None else delivery_id(*found.source, found.subscription_id)


class DeadLetterPage(NamedTuple):
    """A page; `next_cursor` is None on the last one."""

    items: Sequence[FoundDeadLetter]
    next_cursor: str | None


class DeadLetters:
    """Reads the topic. Raises Unavailable while the broker is away."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self.topic = topic
        self._broker = broker

    async def page(self, partition: int | None, limit: int, cursor: str | None) -> DeadLetterPage:
        """A page, the newest first; of one partition, or of all. Raises Invalid, NotFound."""
        try:
            infos = await self._broker.topics(only=self.topic.__eq__)
        except BrokerError as error:
            raise _away(error) from error
        partitions = {
            info.partition: info for found in infos if found.name == self.topic for info in found.partitions
        }
        if partition is not None:
            if partition not in partitions:
                raise NotFound(f"{self.topic} has no partition {partition}")
            partitions = {partition: partitions[partition]}
        ends = {} if cursor is None else _read_cursor(cursor)
        reached: dict[int, int] = {}
        found: list[list[FoundDeadLetter]] = []
        for number, info in sorted(partitions.items()):
            end = min(info.latest, ends.get(number, info.latest))
            first = max(info.earliest, end - limit)
            reached[number] = first
            found.append(await self._window(number, first, end))
        merged = heapq.merge(*found, key=_newest_first)
        items = [letter for letter, _ in zip(merged, range(limit), strict=False)]
        shown = Counter(letter.partition for letter in items)  # of each window the beginning
        for window in found:
            count = shown[window[0].partition] if window else 0
            if count < len(window):
                # What is left of the window comes with the next page.
                reached[window[0].partition] = window[count].offset + 1
        return DeadLetterPage(items, _cursor(reached, partitions))

    async def _window(self, partition: int, first: int, end: int) -> list[FoundDeadLetter]:
        """What stands there, the newest first."""
        letters: list[FoundDeadLetter] = []
        at = first
        while at < end:
            try:
                stretch = await self._broker.read_from(
                    TopicPartition(self.topic, partition), at, end - at, _READ_BYTES
                )
            except UnreadableBatch as error:
                at = error.last + 1
                continue
            except BrokerError as error:
                raise _away(error) from error
            letters += [_letter(partition, record) for record in stretch.records if record.offset < end]
            if stretch.next <= at:
                break
            at = stretch.next
        letters.reverse()
        return letters

    async def find(self, partition: int, offset: int) -> RetryRecord:
        """The delivery that a record of the topic is. Raises NotFound, Gone where it can't be unpacked, and InvalidDeadLetter where it is none."""
        try:
            record = await self._broker.read(TopicPartition(self.topic, partition), offset)
        except UnreadableBatch as error:
            raise Gone(f"the dead letter can't be read: {error}") from error
        except BrokerError as error:
            raise _away(error) from error
        if record is None:
            raise NotFound(f"there is no dead letter {partition}-{offset} (any more)")
        if isinstance(record, UnreadableRecord):
            raise InvalidDeadLetter(f"it can't be unpacked: {record.problem}")
        return read_dead_letter(record)


def _letter(partition: int, record: Record) -> FoundDeadLetter:
    headers = dict(record.headers)
    detail = header(headers, "detail", _DETAIL_CAP)
    delivery: RetryRecord | None = None
    try:
        if isinstance(record, UnreadableRecord):
            raise InvalidDeadLetter(record.problem)  # noqa: TRY301 - handled like what `read_dead_letter` raises
        delivery = read_dead_letter(record)
    except InvalidDeadLetter as error:
        detail = detail or str(error)
    source = delivery.source if delivery is not None else _source(headers)
    size = len(record.value or b"")
    if delivery is not None:
        delivery = delivery.with_body(b"")  # nothing of a page keeps bodies
    return FoundDeadLetter(
        partition,
        record.offset,
        record.timestamp,
        header(headers, "reason", 64),
        detail,
        size,
        delivery,
        source,
    )


def _source(headers: Mapping[str, bytes | None]) -> Source | None:
    topic, partition, offset = (header(headers, name) for name in ("topic", "partition", "offset"))
    if topic is None or partition is None or offset is None:
        return None
    if not (partition.isdecimal() and offset.isdecimal() and len(partition) <= 9 and len(offset) <= 15):
        return None
    return Source(topic, int(partition), int(offset))


def _newest_first(letter: FoundDeadLetter) -> int:
    return -letter.time_ms


def _cursor(reached: Mapping[int, int], partitions: Mapping[int, PartitionInfo]) -> str | None:
    if all(end <= partitions[number].earliest for number, end in reached.items()):
        return None
    return write_cursor({str(number): end for number, end in reached.items()})


def _read_cursor(cursor: str) -> dict[int, int]:
    """Where the page before has stopped. It comes back from outside."""
    found = read_cursor(cursor)
    if not isinstance(found, dict) or not all(
        key.isdecimal() and len(key) <= 9 and type(end) is int and 0 <= end <= 2**53
        for key, end in found.items()
    ):
        raise Invalid([Flaw(("cursor",), "must be a next_cursor as it was sent")])
    return {int(key): end for key, end in found.items()}


def _away(error: BrokerError) -> Unavailable:
    return Unavailable(f"the dead letters can't be read now: {error}", 5.0)
