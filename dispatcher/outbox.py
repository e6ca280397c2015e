"""What must be written to the broker before something else may happen.

A delivery that is given up is settled when its dead letter is acknowledged, not when it is
sent. The outbox takes such records from synchronous code, writes them in batches, and calls
back after the acknowledgement. A broker that is away or refuses holds the records here, and
with them the offsets: they are written again with growing pauses, never dropped, never spun on.

Rules:

1. `put` never waits; its callback is called exactly once, after the acknowledgement.
2. Records leave in the order of `put`, one batch at a time.
3. A record that is too large for its topic is written without its value, and a header says so:
   the value is still at the origin that the other headers name.
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
        while True:
            await self._some.wait()
            self._some.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                self._writing = len(batch)
                await self._write([message for message, _ in batch])
                self._writing = 0
                for _, written in batch:
                    written()

    async def _write(self, messages: Sequence[Message]) -> None:
        tries = 0
        while True:
            try:
                await self._produce(messages)
            except MessageTooLarge:
                if len(messages) > 1:
                    for message in messages:
                        await self._write([message])
                    self.problem = None
                    return
                messages = [_without_value(messages[0])]
                log.warning(
                    "record too large for its topic: written without its value", topic=messages[0].topic
                )
            except BrokerError as error:
                pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
                tries += 1
                self.problem = f"can't write to the broker: {error}"
                log.warning(
                    "write failed, trying again",
                    error=str(error),
                    refused=isinstance(error, BrokerRefused),
                    records=len(messages),
                    tries=tries,
                    pause=pause,
                )
                await asyncio.sleep(pause)
            else:
                self.problem = None
                return


def _without_value(message: Message) -> Message:
    size = len(message.value or b"")
    if not size:
        raise BrokerRefused(f"a record for {message.topic} is too large by its headers alone")
    return replace(message, value=b"", headers=[*message.headers, ("omitted", b"%d bytes" % size)])
