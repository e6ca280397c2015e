"""What must be written to the broker before something else may happen.

A delivery that is given up is settled when its dead letter is acknowledged, not when it is
sent. The outbox takes such records from synchronous code, writes them in batches, and calls
back after the acknowledgement. A broker that is away or refuses holds the records here, and
with them the offsets: they are written again with growing pauses, never dropped, never spun on.

What an endpoint that is down is owed comes one by one, hundreds of records a second, and a write of a single one to Kafka
costs some 0.5 ms of CPU, ten deliveries' worth, and the broker no less. So writes keep a distance (`_APART`) in which records gather:
at ten to a write one costs 0.13 ms. The first one after a silence goes at once.

Rules:

1. `put` never waits; its callback is called exactly once, after the acknowledgement.
2. Records leave in the order of `put`, one batch at a time.
3. A record that is too large for its topic is written without its value, then without what it repeats
   of the original's headers, and a header says so: all of it is still at the origin that the others name.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import structlog

from dispatcher.broker.base import BrokerError, BrokerRefused, Message, MessageTooLarge

log = structlog.get_logger(__name__)

Produce = Callable[[Sequence[Message]], Awaitable[None]]
Written = Callable[[], None]

_BATCH = 1000
_APART = 0.05  # seconds from one write's begin to the next one's, unless a whole batch waits
_PAUSES = (0.1, 0.5, 1.0, 2.0, 5.0)  # seconds between tries; the last one goes on


class Outbox:
    """Records on their way to the broker. Owned by the engine."""

    def __init__(self, produce: Produce) -> None:
        self._produce = produce
        self._waiting: deque[tuple[Message, Written]] = deque()
        self._writing = 0
        self._some = asyncio.Event()
        self.problem: str | None = None

    def __len__(self) -> int:
        """Records not acknowledged yet."""
        return len(self._waiting) + self._writing

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
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                self._writing = len(batch)
                began = clock()
                await self._write([message for message, _ in batch])
                self._writing = 0
                for _, written in batch:
                    written()
                if len(self._waiting) < _BATCH:
                    await asyncio.sleep(max(0.0, began + _APART - clock()))

    async def _write(self, messages: Sequence[Message]) -> None:
        tries = 0
        while True:
            try:
                await self._produce(messages)
            except MessageTooLarge as error:
                if len(messages) > 1:
                    for message in messages:
                        await self._write([message])
                    self.problem = None
                    return
                smaller = _smaller(messages[0])
                if smaller is None:
                    await self._failed(error, messages, tries)
                    tries += 1
                    continue
                messages = [smaller]
                log.warning(
                    "record too large for its topic: written without a part of it", topic=smaller.topic
                )
            except BrokerError as error:
                await self._failed(error, messages, tries)
                tries += 1
            else:
                self.problem = None
                return

    async def _failed(self, error: BrokerError, messages: Sequence[Message], tries: int) -> None:
        pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
        self.problem = f"can't write to the broker: {error}"
        log.warning(
            "write failed, trying again",
            error=str(error),
            refused=isinstance(error, BrokerRefused),
            records=len(messages),
            tries=tries + 1,
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
        if name not in {"head", "history"} and not name.startswith("original.")
    ]
    if len(own) == len(message.headers):
        return None
    return replace(message, key=None, headers=[*own, ("omitted", b"key and headers of the original")])
