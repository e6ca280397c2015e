"""The bodies of events, read from the broker where the history says that they stand.

A body is given out only where the record there is the event of the history's row: of its id, type, tenant and SHA-256. A topic that was
made anew has somebody else's record at the old offset.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final, NamedTuple

from dispatcher.broker.base import (
    Broker,
    BrokerError,
    PartitionInfo,
    TopicPartition,
    UnreadableBatch,
    UnreadableRecord,
)
from dispatcher.control.errors import Gone, NotFound, Unavailable
from dispatcher.control.history import FoundEvent, HistoryReader
from dispatcher.core.event.decode import Event, InvalidEvent, decode
from dispatcher.core.event.payload_mask import PayloadMask
from dispatcher.core.retry.records import Source
from dispatcher.core.text.times import rfc3339
from dispatcher.core.text.units import format_duration
from dispatcher.history.bounds import storable
from dispatcher.history.following import peek

_CONTENT_TYPE: Final = b"Content-Type: "


class Payload(NamedTuple):
    """A body as it was published."""

    body: bytes
    content_type: str | None
    """As it is delivered; None for an event without a body's type."""
    source: Source
    masked: bool = False
    """Some of its fields are hidden (`payload.mask`): it isn't the bytes that were published."""


class Payloads:
    """Reads bodies. `tenant` None is an operator, who sees all."""

    def __init__(self, history: HistoryReader, broker: Broker, mask: PayloadMask | None = None) -> None:
        """`mask` is what callers without the capability `secrets` don't see."""
        self._history = history
        self._broker = broker
        self._mask = PayloadMask(()) if mask is None else mask

    async def payload(
        self, tenant: str | None, event_id: str, source: Source | None, *, secrets: bool
    ) -> Payload:
        """The body of the event of this id, of several the newest, or the one at that place. `secrets`: all of its fields.

        Raises NotFound, Gone (what the history knows isn't there any more) and Unavailable.
        """
        events = (await self._history.event(tenant, event_id)).value
        found = next((each for each in events if source in (None, each.source)), None)
        if found is None:
            raise NotFound(f"there is no event {event_id} at that place")
        at = found.source
        try:
            event = await self._read(found, at)
        except UnreadableBatch as error:
            raise Gone(f"the record of the event can't be unpacked any more: {error.reason}") from error
        except BrokerError as error:
            raise Unavailable(f"the broker can't be asked for the body now: {error}", 5.0) from error
        if secrets or not self._mask:
            return Payload(event.body, content_type(event), at)
        # A large body takes a tenth of a second.
        hidden = await asyncio.to_thread(self._mask.applied, event.body)
        if hidden is None:
            return Payload(event.body, content_type(event), at)
        return Payload(hidden, "application/json", at, masked=True)

    async def _read(self, found: FoundEvent, source: Source) -> Event:
        partition = TopicPartition(source.topic, source.partition)
        record = await self._broker.read(partition, source.offset)
        if record is None:
            raise await self._deleted(found, source)
        if isinstance(record, UnreadableRecord):
            raise Gone(f"the record of the event can't be unpacked any more: {record.problem}")
        try:
            event = decode(record, source.topic, source.partition)
        except InvalidEvent:
            event = None
        if event is None or not _same(event, found):
            raise Gone(
                f"another record stands where the event was, in {source.topic}-{source.partition}: the topic was deleted and made anew"
            )
        return event

    async def _deleted(self, found: FoundEvent, source: Source) -> Gone:
        """Why the record isn't there, with the time as far as the topic tells it."""
        partition = TopicPartition(source.topic, source.partition)
        said = f"the body is gone: {source.topic}-{source.partition} has no offset {source.offset} any more"
        info: PartitionInfo | None = None
        kept: str | None = None
        for topic in await self._broker.topics(only=source.topic.__eq__):
            info = next((each for each in topic.partitions if each.partition == source.partition), None)
            kept = topic.config.get("retention.ms")
        if info is None:
            return Gone(f"the body is gone: there is no {source.topic}-{source.partition} any more")
        if source.offset >= info.latest:
            return Gone(f"{said}: the topic was deleted and made anew, or cut")
        published_ms = None if found.event is None else found.event.time_ms
        if kept is not None and kept.isdigit() and int(kept) > 0:
            said += f"; the topic keeps records for {format_duration(int(kept) / 1000)}"
            if published_ms is not None and (due := rfc3339(published_ms + int(kept))) is not None:
                said += f", which were over for this one at {due}"
        oldest = await peek(self._broker, partition, info.earliest)
        if oldest is not None and (since := rfc3339(oldest.timestamp)) is not None:
            said += f"; the oldest record there is of {since}"
        return Gone(said)


def content_type(event: Event) -> str | None:
    """As the event is delivered."""
    line = next((line for line in event.head.split(b"\r\n") if line.startswith(_CONTENT_TYPE)), None)
    return None if line is None else line.removeprefix(_CONTENT_TYPE).decode("ascii", "replace")


def _same(event: Event, found: FoundEvent) -> bool:
    row = found.row
    tenant = None if event.tenant is None else storable(event.tenant, 256)
    if (storable(event.id), storable(event.type), tenant) != (row.event_id, row.event_type, row.tenant):
        return False
    return found.event is None or hashlib.sha256(event.body).hexdigest() == found.event.sha256
