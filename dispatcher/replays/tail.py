"""What a replay has written to `dispatcher.replay`, and what of it is done with: the topic's end, followed beside the group's commits.

Nothing of that is kept: whoever takes a job over reads from the group's commits on and finds what its predecessor has written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from zlib import crc32

from dispatcher.broker.base import (
    Broker,
    BrokerUnavailable,
    Message,
    Position,
    TopicPartition,
    UnreadableBatch,
)
from dispatcher.core.commit.note import read_note
from dispatcher.core.replay.outstanding import Outstanding
from dispatcher.core.replay.record import (
    InvalidReplayRecord,
    ReplayRecord,
    read_replay_record,
    replay_key,
    write_replay_record,
)

_READ_RECORDS: Final = 1000
_READ_SIZE: Final = 1 << 20
_SLICE: Final = 20
_GONE: Final = 60.0  # seconds after which what was written and isn't there has been deleted with its topic


class ReplayTail:
    """Writes the records of one job, and knows which of them are done with."""

    def __init__(
        self, broker: Broker, topic: str, group: str, replay: str, clock: Callable[[], float]
    ) -> None:
        """`group` is the one that reads the topic; `clock` gives seconds."""
        self._broker = broker
        self._topic = topic
        self._group = group
        self._replay = replay
        self._clock = clock
        self._next: dict[int, int] | None = None  # of each partition, up to where it was read
        self._unseen: dict[int, int] = {}  # written, and not read back yet
        self._wrote = clock()
        self._outstanding = Outstanding()

    @property
    def behind(self) -> int:
        """Deliveries that are written and not done with, as of the last look."""
        return len(self._outstanding) + sum(self._unseen.values())

    def messages(self, records: Sequence[ReplayRecord]) -> list[Message]:
        """The records as they are written. Call `look` before: it finds the partitions."""
        assert self._next is not None  # noqa: S101 - see above
        count = len(self._next)
        messages = []
        for record in records:
            key = replay_key(record.body_at)
            messages.append(
                Message(self._topic, write_replay_record(record), key, partition=crc32(key) % count)
            )
        return messages

    def wrote(self, messages: Sequence[Message]) -> None:
        """The broker has these."""
        self._wrote = self._clock()
        for message in messages:
            if message.partition is not None:
                self._unseen[message.partition] = self._unseen.get(message.partition, 0) + 1

    async def look(self) -> None:
        """Find what was written, and what of it is done with by now. Raises BrokerError."""
        committed = await self._broker.positions_of(self._group, self._topic)
        if self._next is None:
            found = (await self._broker.look([self._topic])).get(self._topic)
            if found is None:
                raise BrokerUnavailable(f"topic {self._topic} is not there")
            self._outstanding = Outstanding()  # of a look that failed half-way nothing counts
            self._next = {
                number: await self._follow(number, _offset(committed, self._topic, number))
                for number in range(found.partitions)
            }
        else:
            for number in [number for number, count in self._unseen.items() if count]:
                self._next[number] = await self._follow(number, self._next[number])
            if self._unseen and self._wrote + _GONE < self._clock():
                self._unseen.clear()
        for (_, number), position in committed.items():
            note = read_note(self._topic, number, position.offset, position.metadata)
            self._outstanding.settle(number, position.offset, note)

    async def _follow(self, number: int, at: int) -> int:
        """Read a partition from there to its end; where that is."""
        while True:
            try:
                stretch = await self._broker.read_from(
                    TopicPartition(self._topic, number), at, _READ_RECORDS, _READ_SIZE
                )
            except UnreadableBatch as error:
                at = error.last + 1
                continue
            for count, record in enumerate(stretch.records, 1):
                try:
                    ours = read_replay_record(record.value).replay == self._replay
                except InvalidReplayRecord:
                    ours = False
                if ours:
                    self._outstanding.add(number, record.offset)
                    left = self._unseen.get(number, 0) - 1
                    if left > 0:
                        self._unseen[number] = left
                    else:
                        self._unseen.pop(number, None)
                if count % _SLICE == 0:
                    await asyncio.sleep(0)
            if stretch.next <= at:
                return at
            at = stretch.next


def _offset(committed: Mapping[TopicPartition, Position], topic: str, number: int) -> int:
    position = committed.get(TopicPartition(topic, number))
    return 0 if position is None else position.offset
