"""Who did what: a record of each change that the API made, beside the line in the log.

Records are in the topic `dispatcher.audit` for `api.audit_retention`. Each process with the API follows the topic and keeps the
newest `KEPT` records in memory, so every one of them answers for all. A change doesn't wait for its record: while the broker is
away the records wait here, and the log line has been written anyway.

Rules:

1. A record never holds a value of a credential: who calls `note` gives names of fields, not what is in them.
2. One write at a time, the oldest records first. No more than `WAITING` wait; beyond that the oldest are dropped and counted.
3. What a tenant may see is decided by the caller: a record names no tenant that its subject belongs to.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import orjson
import structlog

from dispatcher.broker.base import Broker, BrokerError, MadeAnew, Message, Record, UnreadableRecord
from dispatcher.control.access import Principal
from dispatcher.control.log import sliced
from dispatcher.runtime.backoff import Backoff
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import Settings

log = structlog.get_logger(__name__)

KEPT: Final = 10_000
WAITING: Final = 10_000
MAX_RECORD: Final = 4096
"""Bytes of a record; of a longer one only what happened is kept, without details."""
_BATCH: Final = 500
_POLL: Final = 1.0


def audit_topic(settings: Settings) -> str:
    """The topic that the records are in."""
    return f"{settings.topics.prefix}audit"


class AuditRecord(NamedTuple):
    """One change."""

    at_ms: int
    action: str
    subject: str
    by: str
    name: str
    scope: str
    tenant: str | None
    """Of the caller; None of an operator."""
    request_id: str
    details: dict[str, Any]

    def to_bytes(self) -> bytes:
        """As it is written."""
        raw = orjson.dumps({"v": 1, **self._asdict()}, default=str)
        if len(raw) > MAX_RECORD:
            raw = orjson.dumps({"v": 1, **self._replace(details={"cut": True})._asdict()}, default=str)
        return raw


def read_audit(value: bytes | None) -> AuditRecord | None:
    """Read `to_bytes`; None for what is no record."""
    try:
        raw = orjson.loads(value or b"")
        return AuditRecord(
            int(raw["at_ms"]),
            str(raw["action"]),
            str(raw["subject"]),
            str(raw["by"]),
            str(raw["name"]),
            str(raw["scope"]),
            None if raw["tenant"] is None else str(raw["tenant"]),
            str(raw["request_id"]),
            dict(raw["details"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


class AuditTrail:
    """Writes records, and has the newest of all processes."""

    def __init__(self, topic: str, broker: Broker, *, wall: Callable[[], float] = time.time) -> None:
        """`wall` gives Unix seconds."""
        self._topic = topic
        self._broker = broker
        self._wall = wall
        self._records: deque[AuditRecord] = deque(maxlen=KEPT)
        self._waiting: deque[AuditRecord] = deque()
        self._dropped = 0
        self._wake = asyncio.Event()
        self._problem: str | None = None

    def start(self, tasks: Tasks) -> None:
        """Write and follow from now on. The topic must exist."""
        tasks.start(self._write(), "audit records")
        tasks.start(self._follow(), "audit trail")

    @property
    def warning(self) -> str | None:
        """What keeps records from being written, in one sentence."""
        return self._problem

    def note(
        self, action: str, subject: str, by: Principal, request_id: str, details: dict[str, Any]
    ) -> None:
        """Somebody has changed something."""
        if len(self._waiting) >= WAITING:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(
            AuditRecord(
                round(self._wall() * 1000),
                action,
                subject,
                by.id,
                by.name,
                by.scope,
                by.tenant,
                request_id,
                details,
            )
        )
        self._wake.set()

    def records(self, subject: str | None, action: str | None, limit: int) -> Sequence[AuditRecord]:
        """The newest, newest first: of all, of a subject, and of actions that begin so."""
        found = []
        for record in reversed(self._records):
            if subject not in (None, record.subject) or not record.action.startswith(action or ""):
                continue
            found.append(record)
            if len(found) >= limit:
                break
        return found

    # In the background.

    async def _write(self) -> None:
        backoff = Backoff()
        while True:
            self._wake.clear()
            batch = [self._waiting[number] for number in range(min(len(self._waiting), _BATCH))]
            if not batch:
                await self._wake.wait()
                continue
            try:
                await self._produce(batch)
            except BrokerError as error:
                pause = backoff.failed()
                if self._problem is None:
                    log.warning(
                        "the audit trail can't be written, trying again; changes go on, and the log has them",
                        error=str(error),
                        waiting=len(self._waiting),
                    )
                self._problem = f"audit records can't be written to {self._topic}: {error}"
                await asyncio.sleep(pause)
                continue
            backoff.succeeded()
            self._problem = None
            if self._dropped:
                log.error("audit records were dropped; the log has them", dropped=self._dropped)
                self._dropped = 0

    async def _produce(self, batch: Sequence[AuditRecord]) -> None:
        await self._broker.produce(
            [
                Message(self._topic, record.to_bytes(), record.subject.encode(errors="replace"), partition=0)
                for record in batch
            ]
        )
        for record in batch:
            # Beyond `WAITING` some of them may have been dropped meanwhile.
            if self._waiting and self._waiting[0] is record:
                self._waiting.popleft()

    async def finish(self, limit: float) -> None:
        """Write what waits, within `limit` seconds. To be called when the tasks have ended."""
        try:
            async with asyncio.timeout(limit):
                while self._waiting:
                    await self._produce(list(self._waiting)[:_BATCH])
        except (TimeoutError, BrokerError) as error:
            log.warning(
                "the end of the audit trail is not written; the log has it",
                records=len(self._waiting),
                error=str(error) or "the broker did not answer",
            )

    async def _follow(self) -> None:
        while True:
            reader = self._broker.reader(self._topic)
            try:
                await reader.start()
                while True:
                    await sliced(await reader.read(_POLL, _BATCH), self._take)
            except MadeAnew as error:
                log.warning("the topic of the audit trail is another one now", error=str(error))
                self._records.clear()
            finally:
                await reader.stop()

    def _take(self, record: Record) -> None:
        read = None if isinstance(record, UnreadableRecord) else read_audit(record.value)
        if read is not None:
            self._records.append(read)
