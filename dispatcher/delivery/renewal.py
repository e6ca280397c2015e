"""Writes parked records anew, before retention takes them and where few of a long stretch are still owed.

In come the partitions that this process has, some times a second (`backlogs.py`). Out go their oldest records, as they are, through the outbox; the offset of the
former record is settled when the broker has the new one. This room alone writes `ServedPartition.renewing`, and its marks from the front.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from dispatcher.broker.base import BrokerError, Message, UnreadableBatch
from dispatcher.delivery.outbox import Outbox
from dispatcher.delivery.parked_reader import ParkedReader, ServedPartition, Start
from dispatcher.delivery.parking import SINCE

log = structlog.get_logger(__name__)

_RENEWED: Final = 200  # records of a partition that are written anew at a time
_LONG: Final = (
    100_000  # offsets between the oldest and the newest, of which few are owed, that are worth renewing for
)
_FEW: Final = 4  # so many times as many as are owed
_AWAY: Final = 1.0  # seconds until another try where the broker couldn't be read


class Renewal:
    """What is being written anew."""

    def __init__(
        self,
        topic: str,
        reader: ParkedReader,
        outbox: Outbox,
        *,
        start: Start,
        renew_after: float,
        wall: Callable[[], float],
    ) -> None:
        """`renew_after` is how old a record gets, in seconds. `start` starts a task; `wall` gives Unix seconds."""
        self._topic = topic
        self._reader = reader
        self._outbox = outbox
        self._start = start
        self._renew_after = renew_after
        self._wall = wall

    def look_after(self, served: ServedPartition) -> None:
        """Have the oldest written anew where that is needed."""
        tracker = served.tracker
        lowest = tracker.committable
        marks = served.marks
        while len(marks) > 1 and marks[1][0] <= lowest:
            marks.popleft()
        if served.renewing or not len(tracker):
            return
        old = bool(marks) and self._is_old(marks[0][1])
        stretch = tracker.next - lowest
        if not old and (stretch < _LONG or stretch < _FEW * len(tracker)):
            return
        offsets = tracker.renew(_RENEWED)
        if offsets:
            served.renewing = len(offsets)
            self._start(self._renew(served, deque(offsets), old=old), f"renew {served.partition}")

    def _is_old(self, written: float) -> bool:
        return self._wall() - written > self._renew_after

    async def _renew(self, served: ServedPartition, offsets: deque[int], *, old: bool) -> None:
        tracker = served.tracker

        def written(offset: int) -> None:
            served.renewing -= 1
            tracker.settle(offset)

        try:
            while offsets and not tracker.lost:
                run, records = await self._reader.read(served.partition, offsets)
                for offset in run:
                    record = records.get(offset)
                    if record is None:
                        served.renewing -= 1
                        self._reader.gone(served, offset)
                        continue
                    if old and not self._is_old(record.timestamp / 1000):
                        if served.marks and served.marks[0][0] <= offset:
                            served.marks[0] = (offset, record.timestamp / 1000)
                        served.renewing -= 1
                        tracker.keep(offset)
                        continue
                    if record.key is not None:
                        backlog = tracker.backlogs.get(record.key.decode(errors="replace"))
                        if backlog is not None:
                            backlog.drop(offset)
                    headers = [(name, value) for name, value in record.headers if value is not None]
                    if all(name != SINCE for name, _ in headers):
                        headers.append((SINCE, b"%d" % record.timestamp))
                    message = Message(
                        self._topic, record.value, record.key, headers, timestamp_ms=int(self._wall() * 1000)
                    )
                    self._outbox.put(message, partial(written, offset))
        except UnreadableBatch as error:
            served.stand_still(error)
            await asyncio.sleep(_AWAY)
        except BrokerError as error:
            log.warning("what is parked can't be read, trying again", error=str(error))
        finally:
            served.renewing -= len(offsets)
            for offset in offsets:
                tracker.keep(offset)
