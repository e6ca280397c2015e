"""The control topic, followed and written: one partition, compacted, in which all that the API manages is kept.

The topic is read whole at the start and followed from then on, so each replica has all of it in memory. A write is a
record. Each replica decides by the order of the log whether the record counts (`core/control/ledger.py`). So a write
is answered when this replica has read its own record back: the broker has acknowledged the record then, all replicas
decide alike about it, and it is in force here. The other replicas follow within milliseconds.

In: records of the topic, writes of this replica. Out: `RecordKind.take` for each state that changes. State that this
module alone writes: the ledger, the writes under way, the repairs.

Rules:

1. `_take` alone applies records, in their order. `_learn` alone changes the ledger.
2. Until `loaded` nothing is written.
3. A dirty key is repaired. The replica whose own record made it dirty does so at once, the others some while later,
   in case that replica is gone.
4. No step holds the loop up for longer than `_SLICE`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

import structlog

from dispatcher.broker.base import (
    Broker,
    BrokerError,
    BrokerUnavailable,
    MadeAnew,
    Message,
    MessageTooLarge,
    Reader as TopicReader,
    Record,
    UnreadableRecord,
)
from dispatcher.control.errors import TooLarge, Unavailable, VersionMismatch
from dispatcher.control.table import Kinds, kind_of
from dispatcher.core.control.ledger import Ledger, LedgerState, Verdict, from_headers, to_headers
from dispatcher.runtime.tasks import Tasks

log = structlog.get_logger(__name__)
T = TypeVar("T")

WRITE_TIMEOUT: Final = 10.0
"""Seconds that a write may take until it is read back."""

RETRY_PAUSE: Final = 0.5
"""Seconds between two tries to write while the broker is away."""

_SLICE: Final = 0.005  # seconds of work at a stretch
_BATCH: Final = 1000
_POLL: Final = 1.0
_REPAIR_DELAY: Final = 20.0  # seconds until others repair what the writer should have
_FORGET_DELETED: Final = 25 * 3600.0
_STOPPED: Final = "the dispatcher is stopping"


class PendingWrite(NamedTuple):
    """A change to be written: made from version `base`; `value` None deletes."""

    key: str
    base: int
    value: bytes | None


async def sliced(items: Iterable[T], work: Callable[[T], object]) -> None:
    """Do the work for each item, and let the loop turn in between."""
    since = time.perf_counter()
    for item in items:
        work(item)
        if time.perf_counter() - since > _SLICE:
            await asyncio.sleep(0)
            since = time.perf_counter()


class ControlLog:
    """Follows the topic; writes answer when they have been read back here.

    Every write raises Unavailable until `loaded`, and while the broker is away: a write that ended so may still
    take effect. VersionMismatch: somebody else was first; read again.
    """

    def __init__(
        self,
        broker: Broker,
        topic: str,
        kinds: Kinds,
        tasks: Tasks,
        wall: Callable[[], float],
        write_timeout: float,
        holds: str = "subscriptions",
    ) -> None:
        """`wall` gives Unix seconds; `write_timeout` in seconds; `holds` says to people what the topic holds."""
        self._holds = holds
        self.topic = topic
        self.write_timeout = write_timeout
        self.records = 0
        """Records read so far."""
        self._broker = broker
        self._kinds = kinds
        self._tasks = tasks
        self._wall = wall
        self._reader: TopicReader | None = None
        self._ledger: Ledger[bytes] = Ledger()
        self._deleted: dict[str, float] = {}  # when; to be forgotten some time after
        self._waiting: dict[bytes, asyncio.Future[Verdict]] = {}
        self._repairs: dict[str, float] = {}  # dirty keys, and when to repair them (loop time)
        self._to_repair = asyncio.Event()
        self._loaded = asyncio.Event()
        self._written_back: int | None = None  # entries, since the topic was made anew
        self._problem: str | None = f"the {holds} are not read yet"

    # Starting, stopping, and what others may ask.

    def start(self, loaded: Callable[[], Awaitable[None]]) -> None:
        """Read in the background and follow from then on. `loaded` is waited for once, when all that was there is taken."""
        self._tasks.start(self._follow(loaded), "control store")
        self._tasks.start(self._repair_dirty(), "control repairs")

    async def wait_loaded(self) -> None:
        """Wait until everything is read that was there at the start."""
        await self._loaded.wait()

    def close(self) -> None:
        """Write nothing more."""
        self._problem = _STOPPED
        self._loaded.clear()

    async def stop(self) -> None:
        """End the writes under way with Unavailable, and let go of the topic. The tasks are ended."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Unavailable(f"{_STOPPED}: the change may still take effect"))
        if self._reader is not None:
            await self._reader.stop()

    @property
    def loaded(self) -> bool:
        """Whether everything is read that was there at the start."""
        return self._loaded.is_set()

    @property
    def problem(self) -> str | None:
        """Why the control plane can't be asked, in one sentence."""
        if self._problem is not None:
            return self._problem
        return None if self._reader is None else self._reader.problem

    @property
    def warning(self) -> str | None:
        """A trouble that doesn't stop the control plane, in one sentence."""
        if self._written_back is None:
            return None
        return (
            f"topic {self.topic} was deleted or cut and made anew: the {self._written_back} entries that it held were written to"
            " it again from this process's memory; to begin with an empty one, stop every replica first"
        )

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return round(self._wall() * 1000)

    def present(self, key: str) -> LedgerState[bytes] | None:
        """The state of a key that is there; None for a key that is deleted or was never seen."""
        state = self._ledger.get(key)
        return None if state is None or state.value is None else state

    # Reading.

    async def _follow(self, loaded: Callable[[], Awaitable[None]]) -> None:
        self._reader = reader = self._broker.reader(self.topic)
        await reader.start()
        while not reader.caught_up:
            self._problem = reader.problem or f"reading the {self._holds}: {self.records} records so far"
            await sliced(await reader.read(_POLL, _BATCH), self._learn)
        self._problem = f"putting {len(self._ledger)} entries of the control plane in place"
        await sliced(list(self._ledger), self._changed)
        await loaded()
        for key in self._ledger.dirty:
            self._plan_repair(key, 2 * random.random())  # noqa: S311 - no secret
        self._problem = None
        self._loaded.set()
        while True:
            try:
                await sliced(await reader.read(_POLL, _BATCH), self._take)
            except MadeAnew as error:
                reader = await self._write_back(reader, error)

    async def _write_back(self, lost: TopicReader, error: MadeAnew) -> TopicReader:
        """The topic was deleted and made anew: give it back what every replica has of it, and follow the new one.

        To drop what it held would end every delivery to these subscriptions, without a word and for good. Each entry is
        written as a repair is: from whichever replica it comes first, the others take it for what they have.
        """
        log.error(
            "the topic of the control plane is not the one that was read", topic=self.topic, error=str(error)
        )
        await lost.stop()
        self._reader = reader = self._broker.reader(self.topic)
        await reader.start()
        keys = [key for key in self._ledger if self.present(key) is not None]
        for key in keys:
            self._ledger.spoil(key)
            self._plan_repair(key, 2 * random.random())  # noqa: S311 - no secret
        self._written_back = len(keys)
        log.error(
            "what the topic of the control plane held is written to it again",
            topic=self.topic,
            entries=len(keys),
        )
        return reader

    def _learn(self, record: Record) -> tuple[str, Verdict, bytes]:
        """Let the ledger have the record: its key, what became of it, and its nonce."""
        self.records += 1
        if self._kinds.take_bare(record.key):
            return "", Verdict.IGNORED, b""
        key = "" if record.key is None else record.key.decode(errors="replace")
        try:
            if isinstance(record, UnreadableRecord):
                raise ValueError(record.problem)  # noqa: TRY301, TRY004 - handled like what `from_headers` raises
            change = from_headers(record.headers)
        except ValueError as error:
            log.warning(
                "a foreign record in the topic of the control plane, passed over",
                topic=self.topic,
                key=key[:80],
                offset=record.offset,
                error=str(error),
            )
            self._ledger.spoil(key)
            return key, Verdict.IGNORED, b""
        return key, self._ledger.apply(key, change, record.value), change.nonce

    def _take(self, record: Record) -> None:
        """The next record, once everything is loaded."""
        key, verdict, nonce = self._learn(record)
        future = self._waiting.pop(nonce, None)
        if verdict is Verdict.ACCEPTED:
            self._changed(key)
        if key in self._ledger.dirty:
            self._plan_repair(key, 0.0 if future is not None else _REPAIR_DELAY * (1 + random.random()))  # noqa: S311 - no secret
        else:
            self._repairs.pop(key, None)
        if future is not None and not future.done():
            future.set_result(verdict)

    def _changed(self, key: str) -> None:
        """Bring everything that follows from the key's state to what it is now."""
        state = self._ledger.get(key)
        assert state is not None  # noqa: S101 - for the type checker: the ledger has just said so
        if state.value is None:
            self._deleted[key] = self._wall()
        else:
            self._deleted.pop(key, None)
        kind, name = self._kinds.of(key)
        if kind is not None:
            kind.take(name, state)
        elif state.value is not None:
            log.warning("an entry of a kind that this version doesn't know", key=key[:80])

    def forget(self) -> None:
        """Forget keys that were deleted a day ago: the topic is compacted by then."""
        before = self._wall() - _FORGET_DELETED
        for key in [key for key, when in self._deleted.items() if when < before]:
            del self._deleted[key]
            self._ledger.forget(key)

    # Writing.

    def check(self) -> None:
        """Raise Unavailable before everything is read, and after the stop."""
        if not self.loaded:
            raise Unavailable(self.problem or f"the {self._holds} are still being read")

    def away(self) -> Unavailable:
        """The error of a write that wasn't read back in time."""
        why = self._broker.problem or "the broker did not answer in time"
        return Unavailable(f"{why}: the change may still take effect; look before trying again")

    async def change(self, key: str, base: int, value: bytes | None) -> None:
        """Write it in the place of version `base` (0: new), and wait until it is decided and in force here.

        Raises VersionMismatch, Unavailable, TooLarge.
        """
        self.check()
        state = self.present(key)
        current = None if state is None else state.version
        if base != (current or 0):
            raise VersionMismatch(current)
        (verdict,) = await self.write_all([PendingWrite(key, base, value)])
        if verdict is Verdict.IGNORED:
            state = self.present(key)
            raise VersionMismatch(None if state is None else state.version)

    async def write_all(self, writes: Sequence[PendingWrite]) -> list[Verdict]:
        """Write all of them, and what became of each. Raises Unavailable, TooLarge."""
        if not writes:
            return []
        loop = asyncio.get_running_loop()
        messages = []
        futures: dict[bytes, asyncio.Future[Verdict]] = {}
        for key, base, value in writes:
            nonce = os.urandom(9).hex().encode()
            change = self._ledger.change(key, base, nonce)
            messages.append(self._message(key, value, to_headers(change)))
            futures[nonce] = loop.create_future()
        self._waiting.update(futures)
        try:
            async with asyncio.timeout(self.write_timeout):
                await self._produce(messages)
                return await asyncio.gather(*futures.values())
        except TimeoutError as error:
            raise self.away() from error
        finally:
            self._give_up(futures)

    def _give_up(self, futures: Mapping[bytes, asyncio.Future[Verdict]]) -> None:
        for nonce, future in futures.items():
            self._waiting.pop(nonce, None)
            # Those that gather() had cancelled would raise that here, in the place of what is to be told.
            if not future.cancel() and not future.cancelled():
                future.exception()  # its error has been raised above, or nobody waits for it

    def _message(self, key: str, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> Message:
        kind = kind_of(key).encode()
        return Message(self.topic, value, key.encode(), [("kind", kind), *headers], partition=0)

    async def _produce(self, messages: Sequence[Message]) -> None:
        """Until the broker has them: what is sent twice counts once."""
        while True:
            self.check()
            try:
                await self._broker.produce(messages)
            except BrokerUnavailable:
                await asyncio.sleep(RETRY_PAUSE)
            except MessageTooLarge as error:
                raise TooLarge(str(error)) from error
            except BrokerError as error:
                raise Unavailable(f"the broker refused the change: {error}") from error
            else:
                return

    # Repairs (rule 3).

    def _plan_repair(self, key: str, delay: float) -> None:
        due = asyncio.get_running_loop().time() + delay
        self._repairs[key] = min(due, self._repairs.get(key, due))
        self._to_repair.set()

    async def _repair_dirty(self) -> None:
        clock = asyncio.get_running_loop().time
        await self._loaded.wait()
        while True:
            self._to_repair.clear()
            due = min(self._repairs.values(), default=None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(0.0, due - clock())):
                    await self._to_repair.wait()
                    continue
            now = clock()
            messages = []
            for key in [key for key, when in self._repairs.items() if when <= now]:
                if key not in self._ledger.dirty:
                    del self._repairs[key]
                    continue
                change, value = self._ledger.repair(key)
                messages.append(self._message(key, value, to_headers(change)))
                self._repairs[key] = now + _REPAIR_DELAY  # should it not come
            try:
                await self._broker.produce(messages)
            except BrokerError as error:
                log.warning(
                    "a repair can't be written, trying again later", keys=len(messages), error=str(error)
                )
