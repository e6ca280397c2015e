"""What must be written to the broker before something else may happen.

A delivery that is given up is settled when its dead letter is acknowledged, not when it is
sent. The outbox takes such records from synchronous code, writes them in batches, and calls
back after the acknowledgement. A broker that is away or refuses holds the records here, and
with them the offsets: they are written again with growing pauses, never dropped, never spun on.

What an endpoint that is down is owed comes one by one, hundreds of records a second, and a write of a single one to Kafka
costs some 0.5 ms of CPU, ten deliveries' worth, and the broker no less. So writes keep a distance (`_APART`) in which records gather:
at ten to a write one costs 0.13 ms. The first one after a silence goes at once.

Rules:

1. `put` never waits; its callback is called exactly once, as soon as its record is acknowledged.
2. Records leave in the order of `put`, one batch at a time.
3. A record that is too large for its topic is written without its value, then without what it repeats
   of the original's headers, and a header says so: all of it is still at the origin that the others name.
4. What was acknowledged is not written again. Where a write failed, what is uncertain is the batch of each partition whose answer
   was lost (256 KiB at most): that is written again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import structlog

from dispatcher.broker.base import Acknowledged, BrokerError, BrokerRefused, Message, MessageTooLarge
from dispatcher.runtime.backoff import Backoff

log = structlog.get_logger(__name__)

Produce = Callable[[Sequence[Message], Acknowledged], Awaitable[None]]
Written = Callable[[], None]

_BATCH = 1000
_APART = 0.05  # seconds from one write's begin to the next one's, unless a whole batch waits


class _Batch:
    """Records of one write, until they are acknowledged."""

    __slots__ = ("_entries", "_error", "count")

    def __init__(self, entries: Sequence[tuple[Message, Written]]) -> None:
        self._entries: list[tuple[Message, Written] | None] = list(entries)
        self._error: Exception | None = None
        self.count = len(entries)  # not acknowledged yet

    def messages(self) -> list[Message]:
        return [entry[0] for entry in self._entries if entry is not None]

    def acknowledged(self, numbers: Sequence[int]) -> None:
        entries = self._entries
        for number in numbers:
            entry = entries[number]
            if entry is not None:
                entries[number] = None
                self.count -= 1
                try:
                    entry[1]()
                except Exception as error:  # noqa: BLE001 - not the broker's: `left` raises it
                    self._error = error

    def left(self) -> list[tuple[Message, Written]]:
        """Those that have to be written again."""
        if self._error is not None:
            raise self._error
        return [entry for entry in self._entries if entry is not None]


class Outbox:
    """Records on their way to the broker. Owned by the engine."""

    def __init__(self, produce: Produce) -> None:
        self._produce = produce
        self._waiting: deque[tuple[Message, Written]] = deque()
        self._batch = _Batch(())
        self._behind = 0  # records of a batch that are written one by one, after that one
        self._some = asyncio.Event()
        self.problem: str | None = None

    def __len__(self) -> int:
        """Records not acknowledged yet."""
        return len(self._waiting) + self._behind + self._batch.count

    def put(self, message: Message, written: Written) -> None:
        """Write it; `written` is called once it is durable."""
        self._waiting.append((message, written))
        self._some.set()

    async def run(self) -> None:
        """Write until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            await self._some.wait()
            self._some.clear()
            while self._waiting:
                entries = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                self._behind = 0
                began = clock()
                await self._write(entries)
                if len(self._waiting) < _BATCH:
                    await asyncio.sleep(max(0.0, began + _APART - clock()))

    async def _write(self, entries: Sequence[tuple[Message, Written]]) -> None:
        backoff = Backoff()
        while entries:
            batch = self._batch = _Batch(entries)
            try:
                await self._produce(batch.messages(), batch.acknowledged)
            except MessageTooLarge as error:
                entries = batch.left()
                if len(entries) > 1:
                    self._behind += len(entries)
                    for entry in entries:
                        self._behind -= 1
                        await self._write([entry])
                    return
                for message, written in entries:
                    smaller = _smaller(message)
                    if smaller is None:
                        await self._failed(error, 1, backoff)
                    else:
                        entries = [(smaller, written)]
                        log.warning(
                            "record too large for its topic: written without a part of it",
                            topic=smaller.topic,
                        )
            except BrokerError as error:
                entries = batch.left()
                if entries:
                    await self._failed(error, len(entries), backoff)
            else:
                entries = batch.left()
        self.problem = None

    async def _failed(self, error: BrokerError, records: int, backoff: Backoff) -> None:
        pause = backoff.failed()
        self.problem = f"can't write to the broker: {error}"
        log.warning(
            "write failed, trying again",
            error=str(error),
            refused=isinstance(error, BrokerRefused),
            records=records,
            tries=backoff.failures,
            pause=pause,
        )
        await asyncio.sleep(pause)


def _smaller(message: Message) -> Message | None:
    """Without its value, or if it has none left, without what is copied of the original record; None if neither is there."""
    if size := len(message.value or b""):
        return replace(
            message, value=b"", headers=[*message.headers, ("omitted", b"value of %d bytes" % size)]
        )
    own = [
        (name, value)
        for name, value in message.headers
        if name not in {"head", "history", "raw_headers"} and not name.startswith("original.")
    ]
    if len(own) == len(message.headers) and message.key is None:
        return None
    return replace(message, key=None, headers=[*own, ("omitted", b"key and headers of the original")])
