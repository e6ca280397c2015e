"""The attempt log: a record of every attempt, written to the attempts topic behind the deliveries' backs.

It must cost little (25,000 a second) and hold no delivery up. So the hot path notes what a record will say (`Noted`); that
is encoded 32 at a time, and what was encoded is written every tenth of a second by a task of its own, over a
connection of its own. A broker that is away or refuses fills a buffer, and what no longer fits
is dropped, the oldest first, and counted.

Commits wait for the log (`caught_up`), so that it is as safe as the deliveries: what a process that is killed has not written yet, the
next one attempts again. A log that can't be written holds a commit for `COMMIT_WAITS` seconds, once, and none after that while it stays so.

5 us a delivery were allowed; `python -m benchmarks micro` says what it takes ("attempt log").

Rules:

1. `note` never waits, and never raises whatever the delivery contains.
2. At most `_CHUNK` events are kept alive by it, and `limit` bytes of encoded records.
3. One write at a time, the oldest records first: the attempts of one delivery stay in their order. What was acknowledged is
   not written again.
4. `caught_up` is true only if every record that was noted before the call is acknowledged, or was dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal

import structlog

from dispatcher.broker.base import BrokerError, Entry, MessageTooLarge
from dispatcher.core.attempt.encode import Decided, Encoded, Noted, encode, encode_decided
from dispatcher.runtime.backoff import Backoff

log = structlog.get_logger(__name__)

Append = Callable[[str, Sequence[Entry]], Awaitable[None]]
Mode = Literal["all", "failures", "none"]

_CHUNK: Final = 32  # attempts noted before they are encoded: some 100 us of work
_INTERVAL: Final = 0.1  # seconds between two writes
_BATCH: Final = 10_000  # records of one write, up to the end of a chunk
_LIMIT: Final = 32 << 20
COMMIT_WAITS: Final = 5.0
"""Seconds that a commit waits at the most for a record, from the record's encoding on."""

_ENDING_WAITS: Final = 1.0  # the same where the process ends: `finish` comes behind the last commits

_OVERHEAD: Final = 200  # bytes that a record takes in memory beside its value


class _Encoded:
    """Records that go the same way together, as nothing is done for each of them any more."""

    __slots__ = ("before", "entries", "since", "size")

    def __init__(self, before: int = 0, since: float = 0.0) -> None:
        self.entries: list[Entry] = []
        self.size = 0  # bytes in memory
        self.since = since  # when the oldest of them was encoded, by the loop's clock
        self.before = before  # so many records, from the first one ever, are older than all of them


class AttemptLog:
    """Attempts on their way to their topic. Owned by the engine."""

    def __init__(self, mode: Mode, topic: str, replica: str, append: Append, *, limit: int = _LIMIT) -> None:
        """`replica` names this process; `append` writes to the broker; `limit` in bytes."""
        self.successes = mode == "all"
        self.failures = mode != "none"
        self.written = 0
        self.dropped = 0
        self.problem: str | None = None
        self._topic = topic
        self._replica = replica
        self._append = append
        self._limit = limit
        self._noted: list[Noted | Decided] = []
        self._waiting: deque[_Encoded] = deque()
        self._writing = _Encoded()
        self._count = 0  # entries of both
        self._size = 0  # and their bytes
        self._broken = False
        self._clock = asyncio.get_running_loop().time
        self._encoded = 0  # records, from the first one ever
        self._longest_wait = math.inf
        self._hurry = asyncio.Event()  # somebody waits for `caught_up`
        self._moved = asyncio.Event()  # something was acknowledged or dropped

    def __len__(self) -> int:
        """Records not acknowledged yet."""
        return len(self._noted) + self._count

    def note(self, noted: Noted) -> None:
        """An attempt ended."""
        self._noted.append(noted)
        if len(self._noted) >= _CHUNK:
            self._encode()

    def decided(self, decided: Decided) -> None:
        """A delivery ended, or was parked, without a request."""
        self._noted.append(decided)
        if len(self._noted) >= _CHUNK:
            self._encode()

    def _encode(self) -> None:
        noted, self._noted = self._noted, []
        replica = self._replica
        encoded = _Encoded(self._encoded, self._clock())
        entries = encoded.entries
        size = 0
        for attempt in noted:
            try:
                entry: Encoded = (
                    encode_decided(attempt, replica)
                    if isinstance(attempt, Decided)
                    else encode(attempt, replica)
                )
            except Exception:
                # A bug, but no reason not to deliver (rule 1). Told once.
                self.dropped += 1
                if not self._broken:
                    self._broken = True
                    log.exception("an attempt can't be logged")
                continue
            size += len(entry[1]) + _OVERHEAD
            entries.append(entry)
        encoded.size = size
        self._encoded += len(entries)
        self._size += size
        self._count += len(entries)
        self._waiting.append(encoded)
        if self._size > self._limit:
            self._drop()

    def _drop(self) -> None:
        """Make room: the oldest go, but for those that are being written."""
        waiting = self._waiting
        while self._size > self._limit and waiting:
            self.dropped += self._forget(waiting.popleft())

    def _forget(self, encoded: _Encoded) -> int:
        """They are no longer here; how many they were."""
        count = len(encoded.entries)
        self._size -= encoded.size
        self._count -= count
        self._moved.set()
        return count

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL):
                    await self._hurry.wait()
            self._hurry.clear()
            await self._write()

    async def caught_up(self, limit: float = COMMIT_WAITS) -> bool:
        """Wait until what has been noted by now is acknowledged; False where some of it has waited for `limit` seconds in vain."""
        if self._noted:
            self._encode()
        mark = self._encoded
        while (oldest := self._oldest(mark)) is not None:
            left = oldest.since + min(limit, self._longest_wait) - self._clock()
            if left <= 0:
                return False
            self._hurry.set()
            self._moved.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._moved.wait()
        return True

    def end_soon(self) -> None:
        """The process ends: whoever waits for the log doesn't wait for long any more."""
        self._longest_wait = _ENDING_WAITS
        self._moved.set()

    def _oldest(self, mark: int) -> _Encoded | None:
        """The oldest that are here of the first `mark` records."""
        oldest = self._writing if self._writing.entries else self._waiting[0] if self._waiting else None
        return None if oldest is None or oldest.before >= mark else oldest

    async def _write(self) -> None:
        """Write all there is now."""
        if self._noted:
            self._encode()
        waiting = self._waiting
        while waiting or self._writing.entries:
            writing = self._writing  # not empty: `finish` goes on with what `run` had begun
            while waiting and len(writing.entries) < _BATCH:
                next_ = waiting.popleft()
                if not writing.entries:
                    writing.before, writing.since = next_.before, next_.since
                writing.entries += next_.entries
                writing.size += next_.size
            await self._deliver()

    async def _deliver(self) -> None:
        backoff = Backoff()
        while batch := self._writing.entries:
            try:
                await self._append(self._topic, batch)
            except MessageTooLarge as error:
                self._keep(error.left)
                # Some kilobytes: the topic takes next to nothing. One by one would be the same again.
                self.dropped += self._done()
                self._tell(error, backoff.failures, 0.0)
                return
            except BrokerError as error:
                self._keep(error.left)
                pause = backoff.failed()
                self._tell(error, backoff.failures - 1, pause)
                await asyncio.sleep(pause)
            else:
                self.written += self._done()
                self.problem = None

    def _keep(self, left: Sequence[Entry] | None) -> None:
        """Of what is being written only these are left; None for all."""
        if left is None:
            return
        written = self._writing
        self.written += self._done() - len(left)
        rest = self._writing
        # Those of some partitions, so the oldest may be among them.
        rest.before, rest.since = written.before, written.since
        rest.entries = list(left)
        rest.size = sum([len(entry[1]) + _OVERHEAD for entry in left])
        self._count += len(left)
        self._size += rest.size

    def _done(self) -> int:
        writing, self._writing = self._writing, _Encoded()
        return self._forget(writing)

    def _tell(self, error: BrokerError, tries: int, pause: float) -> None:
        if self.problem is None or tries % 10 == 9:
            log.warning(
                "the attempt log can't be written; deliveries go on",
                error=str(error),
                waiting=len(self),
                dropped=self.dropped,
                tries=tries + 1,
                pause=pause,
            )
        self.problem = f"the attempt log can't be written: {error}"

    async def finish(self, limit: float) -> None:
        """Write what is left, within `limit` seconds. Call it when `run` has ended."""
        try:
            async with asyncio.timeout(limit):
                await self._write()
        except TimeoutError:
            self.dropped += len(self)
            log.warning("the broker did not answer: the end of the attempt log is lost", attempts=len(self))
