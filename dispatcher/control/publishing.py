"""Publishing over HTTP: events in, answered after the broker's acknowledgement.

For producers without a Kafka client. An event is checked as a consumer will read it, then written as a JSON envelope
to the first events topic. A 202 means that the event can't be lost any more. After any other answer the producer
sends the event again, under the same id.

**The window** is there for that repetition: an id that was written within `api.publish_window` is not written a second
time. Each replica has a window of its own. A shared one, in a topic, would add a second write to every publish, and
every replica would read what all others publish. So a repetition that reaches another replica is written twice.
Deliveries are at least once in any case: subscribers compare `webhook-id`, which stays the same.

Rules:

1. A batch is written whole, or not at all where one of its events is wrong. A broker that fails in the middle may have
   written a part: the caller sends all of it again, and the window leaves out the known ids.
2. An id counts as written only after the acknowledgement. A second request with an id that is under way waits for the
   first request's end.
3. Memory is bounded: bytes under way (beyond: `Overloaded`) and entries of the window (the oldest go).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from secrets import token_hex
from typing import Any, Final

from orjson import OPT_SORT_KEYS, JSONEncodeError, dumps

from dispatcher.broker.base import (
    BrokerError,
    BrokerUnavailable,
    Message,
    MessageTooLarge,
    StoredRecord,
)
from dispatcher.control.catalogue import Catalogue
from dispatcher.control.errors import Invalid, Overloaded, TooLarge, Unavailable
from dispatcher.control.quotas import Quotas
from dispatcher.core.event.decode import RESERVED, InvalidEvent, decode
from dispatcher.core.event.moment import valid_time
from dispatcher.core.event.raw_json import RawJson
from dispatcher.core.flaws import Flaw
from dispatcher.core.text.units import format_size
from dispatcher.settings.groups import ApiSettings
from dispatcher.telemetry.metrics import Metrics

MAX_BATCH: Final = 1000
_MAX_BATCH_BYTES: Final = 8  # times the limit of one event
_UNDER_WAY: Final = 32 << 20  # bytes waiting for the broker's acknowledgement
_WINDOW: Final = 100_000  # ids remembered
_ACKNOWLEDGED_WITHIN: Final = 15.0  # seconds
_FIELDS: Final = frozenset({"id", "type", "tenant", "created", "timestamp", "data"})
_FLAW_FIELDS: Final = {"type": "type", "id": "id", "tenant": "tenant"}
_MAX_FLAWS: Final = 100
_SLICE: Final = 50  # events that are read at a stretch: about 1 ms
_MANY: Final = 64 * 1024  # bytes beyond which payloads are validated in a thread

_Name = tuple[str | None, str]  # tenant, id


@dataclass(frozen=True, slots=True)
class Published:
    """One event that is in the topic. `duplicate`: it was there already, under the same id."""

    id: str
    duplicate: bool = False
    warnings: list[Flaw] = field(
        default_factory=list
    )  # where it differs from its schema (`publish_validation: warn`)


@dataclass(slots=True)
class _Event:
    name: _Name
    digest: bytes
    message: Message
    type: str
    data: Any
    at: tuple[str | int, ...]  # where in the request
    warnings: list[Flaw] = field(default_factory=list)


@dataclass(slots=True)
class _Known:
    digest: bytes
    until: float
    written: asyncio.Future[bool] | None  # while it is under way


def batch_limit(settings: ApiSettings) -> int:
    """Bytes that all events of one request may have together."""
    return settings.max_event_bytes * _MAX_BATCH_BYTES


def _size(event: object) -> int:
    """Bytes of the event's data as it came; what isn't bytes of the request is refused, or small."""
    data = event.get("data") if isinstance(event, Mapping) else None
    return len(data) if isinstance(data, RawJson) else 0


class Publisher:
    """Writes events of the API to the events topic."""

    def __init__(
        self,
        produce: Callable[[Sequence[Message]], Awaitable[None]],
        topic: str,
        catalogue: Catalogue,
        settings: ApiSettings,
        metrics: Metrics,
        wall: Callable[[], float],
        quotas: Quotas,
    ) -> None:
        """`wall` gives Unix seconds."""
        self._quotas = quotas
        self._produce = produce
        self._topic = topic
        self._catalogue = catalogue
        self._validation = settings.publish_validation
        self._max_event = settings.max_event_bytes
        self._max_batch = batch_limit(settings)
        self._window = settings.publish_window
        self._metrics = metrics
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._known: dict[_Name, _Known] = {}  # the oldest first
        self._under_way = 0

    async def publish(
        self,
        events: Sequence[Mapping[str, Any]],
        *,
        tenant: str | None,
        batch: bool | None = None,
        trace: Sequence[tuple[str, bytes]] = (),
    ) -> list[Published]:
        """Write all of them or, when any is invalid, none.

        `tenant` None is an operator, whose events name their tenant; a tenant's events are its own. Fields are those of
        the JSON envelope: type, id, tenant, created or timestamp, data. Flaws of a batch begin with the event's number.
        `trace` are headers that each record gets.
        """
        self._catalogue.check_ready()  # the topics aren't there before that, nor the connection
        batch = len(events) != 1 if batch is None else batch
        if len(events) > MAX_BATCH:
            raise TooLarge(f"a batch has at most {MAX_BATCH} events, and this one {len(events)}")
        self._quotas.take_events(tenant, len(events), sum(map(_size, events)) if tenant is not None else 0)
        try:
            read = await self._read(events, tenant, batch=batch)
            await self._validate(read)
        except Invalid:
            self._metrics.published["refused"] += len(events)
            raise
        if trace:
            for event in read:
                event.message.headers = trace
        return await self._publish(read)

    async def _read(
        self, events: Sequence[Mapping[str, Any]], tenant: str | None, *, batch: bool
    ) -> list[_Event]:
        if not events:
            raise Invalid([Flaw((), "has no events")])
        flaws: list[Flaw] = []
        read: list[_Event] = []
        for number, event in enumerate(events):
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            at: tuple[str | int, ...] = (number,) if batch else ()
            try:
                read.append(self._event(event, tenant, at))
            except Invalid as invalid:
                flaws.extend(invalid.flaws)
            if len(flaws) >= _MAX_FLAWS:
                break
        if flaws:
            raise Invalid(flaws)
        size = sum(len(event.message.value or b"") for event in read)
        if size > self._max_batch:
            raise TooLarge(f"a batch has at most {format_size(self._max_batch)}")
        return read

    def _event(self, event: Mapping[str, Any], tenant: str | None, at: tuple[str | int, ...]) -> _Event:
        if not isinstance(event, Mapping):
            raise Invalid([Flaw(at, "must be an object")])
        flaws = [Flaw((*at, str(name)), "there is no such field") for name in event if name not in _FIELDS]
        given = {name: value for name, value in event.items() if value is not None or name == "data"}
        kind = given.get("type")
        if not isinstance(kind, str):
            flaws.append(Flaw((*at, "type"), "is required" if kind is None else "must be a text"))
        elif kind.startswith(RESERVED):
            flaws.append(
                Flaw((*at, "type"), f"must not begin with {RESERVED}: those are the dispatcher's own")
            )
        if tenant is not None and given.get("tenant", tenant) != tenant:
            flaws.append(Flaw((*at, "tenant"), "must be your own, or left out"))
        flaws.extend(
            Flaw((*at, name), f"must be {what}")
            for name, types, what in (
                ("id", str, "a text"),
                ("created", (int, float), "Unix seconds"),
                ("timestamp", (str, int, float), "ISO 8601, or Unix seconds"),
            )
            if name in given and (not isinstance(given[name], types) or isinstance(given[name], bool))
        )
        flaws.extend(
            Flaw((*at, name), "is no time: ISO 8601 (2026-03-01T09:30:00Z), or Unix seconds")
            for name in ("created", "timestamp")
            if isinstance(given.get(name), (str, int, float)) and not valid_time(given[name])
        )
        if flaws:
            raise Invalid(flaws)
        event_id = given.get("id") or f"evt_{token_hex(12)}"
        if given.get("id") == "":
            raise Invalid([Flaw((*at, "id"), "must not be empty")])
        whose = given.get("tenant") if tenant is None else tenant
        document: dict[str, Any] = {"id": event_id, "type": kind}
        if "timestamp" in given:
            document["timestamp"] = given["timestamp"]
        if "created" in given or "timestamp" not in given:
            document["created"] = given.get("created", round(self._wall(), 3))
        if whose is not None:
            document["tenant"] = whose
        # Its own bytes, so that another spelling of a number is another event.
        data = given.pop("data", None)
        try:
            head = dumps(document)
            digest = blake2b(dumps(given, option=OPT_SORT_KEYS), digest_size=8)
            value = head
            if "data" in event:
                raw = data if isinstance(data, RawJson) else dumps(data)
                value = b'%b,"data":%b}' % (head[:-1], raw)
                digest.update(
                    b"\0" + (raw if isinstance(data, RawJson) else dumps(data, option=OPT_SORT_KEYS))
                )
        except (JSONEncodeError, RecursionError):
            raise Invalid([Flaw((*at, "data"), "is nested too deeply, or not JSON")]) from None
        if len(value) > self._max_event:
            flaw = Flaw(
                at,
                f"has {len(value)} bytes; {format_size(self._max_event)} are the most (api.max_event_bytes)",
            )
            raise TooLarge(str(flaw) if at else f"the event {flaw.message}", [flaw] if at else ())
        try:
            # As whoever consumes it will read it, so that nothing gets in that becomes a dead letter.
            decode(StoredRecord(0, 0, None, head), self._topic, 0)
        except InvalidEvent as error:
            name = _FLAW_FIELDS.get(error.reason)
            raise Invalid([Flaw((*at, name) if name else at, error.detail)]) from error
        message = Message(self._topic, value, event_id.encode())
        return _Event((whose, event_id), digest.digest(), message, str(kind), data, at)

    async def _validate(self, events: Sequence[_Event]) -> None:
        if self._validation == "off":
            return
        if sum(len(event.message.value or b"") for event in events) > _MANY:
            flawed = await asyncio.to_thread(self._differences, events)
        else:
            flawed = self._differences(events)
        if self._validation == "enforce":
            flaws = [flaw for _, found in flawed for flaw in found]
            if flaws:
                raise Invalid(flaws[:_MAX_FLAWS])
        for event, found in flawed:
            event.warnings.extend(found)

    def _differences(self, events: Sequence[_Event]) -> list[tuple[_Event, list[Flaw]]]:
        found = []
        for event in events:
            flaws = self._catalogue.validate_payload(event.type, event.data)
            if flaws:
                found.append((event, [Flaw((*event.at, *flaw.path), flaw.message) for flaw in flaws]))
        return found

    async def _publish(self, events: Sequence[_Event]) -> list[Published]:
        while True:
            self._expire()
            self._check_reuse(events)
            waiting = [
                known.written
                for event in events
                if (known := self._known.get(event.name)) is not None and known.written is not None
            ]
            if not waiting:
                break
            # What becomes of the other request decides what there is to do: rule 2.
            await asyncio.wait(waiting)
        fresh: dict[_Name, _Event] = {}
        results: list[Published] = []
        for event in events:
            duplicate = event.name in self._known or event.name in fresh
            if not duplicate:
                fresh[event.name] = event
            results.append(Published(event.name[1], duplicate, event.warnings))
        if fresh:
            await self._write(fresh)
        self._metrics.published["published"] += len(fresh)
        self._metrics.published["duplicate"] += len(events) - len(fresh)
        return results

    def _check_reuse(self, events: Sequence[_Event]) -> None:
        """Raise Invalid where an id stands for different events."""
        digests: dict[_Name, bytes] = {}
        flaws = []
        for event in events:
            known = self._known.get(event.name)
            digest = digests.setdefault(event.name, event.digest) if known is None else known.digest
            if digest != event.digest:
                flaws.append(
                    Flaw((*event.at, "id"), "was used for another event: another event needs another id")
                )
        if flaws:
            self._metrics.published["refused"] += len(events)
            raise Invalid(flaws[:_MAX_FLAWS])

    async def _write(self, fresh: Mapping[_Name, _Event]) -> None:
        messages = [event.message for event in fresh.values()]
        size = sum(len(message.value or b"") for message in messages)
        if self._under_way and self._under_way + size > _UNDER_WAY:
            self._metrics.published["failed"] += len(messages)
            raise Overloaded("the broker takes events more slowly than they come: send it again soon")
        written: asyncio.Future[bool] = self._loop.create_future()
        until = self._loop.time() + self._window
        for name, event in fresh.items():
            self._known[name] = _Known(event.digest, until, written)
        self._under_way += size
        done = False
        try:
            async with asyncio.timeout(_ACKNOWLEDGED_WITHIN):
                await self._produce(messages)
            done = True
        except TimeoutError:
            raise Unavailable(
                "the broker has not acknowledged it in time: send it again, under the same id"
            ) from None
        except MessageTooLarge as error:
            raise TooLarge(f"the broker takes no record that large: {error}") from error
        except BrokerUnavailable as error:
            raise Unavailable(f"the broker is away: {error}") from error
        except BrokerError as error:
            raise Unavailable(f"the broker refuses it: {error}", 30.0) from error
        finally:
            self._under_way -= size
            for name in fresh:
                if done:
                    self._known[name].written = None
                else:
                    del self._known[name]
            written.set_result(done)
            if not done:
                self._metrics.published["failed"] += len(messages)

    def _expire(self) -> None:
        now = self._loop.time()
        excess = len(self._known) - _WINDOW
        gone: list[_Name] = []
        for name, known in self._known.items():
            if known.until > now and len(gone) >= excess:
                break
            if known.written is None:
                gone.append(name)
        for name in gone:
            del self._known[name]
