"""Event, and decoding a record into one.

Four record formats, the first that fits wins: CloudEvents structured (`content-type:
application/cloudevents+json`), CloudEvents binary (header `ce_specversion`), header-routed (header
`type`), JSON envelope. A record without a value is an event with an empty body where its headers make it one of the second or
third format (CloudEvents Kafka binding 1.0.2, 3.2.2), else a tombstone. Whatever the format, the body stays the bytes that were published, and
everything that goes onto the wire beside it is checked here, once per record, and kept as one
ready block of header lines: a delivery only copies it.

This runs once per record, so the usual record (no headers, an envelope) costs one pass over the JSON
that makes objects of the five fields it needs only: a quarter of what a whole parse costs at 1 KiB, and an eighth at
256 KiB. What it passes over is checked all the same, as every receiver
will have to parse it: only a number too large for a double passes that a whole parse refuses. Types and
content types come from small vocabularies, so their checks are cached; only what passed is remembered, in
bounded caches that garbage can't fill.

Rules:

1. Strict about what routes and identifies (id, type, tenant, CloudEvents' required attributes,
   content type): a wrong value there makes the record invalid, never a guess.
2. Lenient about what only accompanies: a `traceparent` or a time that can't be read is dropped
   and the event delivered.
3. Of several headers with one name the last counts, as in Kafka's own `lastHeader`. A header
   without a value counts as absent. Names are compared exactly, as Kafka does.
4. JSON's `null` counts as absent. Of duplicate keys the last counts (as nearly everybody has it).
   An empty string is a value, and a wrong one: an empty tenant must not become "no tenant".
5. No byte outside visible ASCII, space and tab gets into `head`, but for the CRLF of each line.
6. Ids and types are what CloudEvents takes for them: strings without control characters. What is no visible ASCII is
   percent-encoded where it becomes a header (`wire_text`).
7. An escaped surrogate that is no half of a pair (JavaScript writes such JSON) is passed over in what isn't routed by, and refused in what is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from dispatcher.core.event.envelope import (
    MISSING,
    CloudEvent,
    NotAnObject,
    NotJson,
    decode_cloud_event,
    decode_envelope,
    fields_of,
)
from dispatcher.core.event.moment import EventTime, milliseconds

MAX_ID: Final = 1024
"""Bytes of an id in UTF-8. CloudEvents knows no limit; header lines do (`MAX_HEAD`)."""
MAX_TYPE: Final = 1024
"""Likewise of a type."""
MAX_TENANT: Final = 256
_MAX_PARENT: Final = 256
MAX_HEAD: Final = 16_384  # many servers take no more than that in header lines altogether

RESERVED: Final = "dispatcher."
"""How the types of the dispatcher's own events begin. Only patterns that begin so match them."""

JSON_HEAD: Final = b"Content-Type: application/json\r\n"

# Compiled, what comes of a module that isn't is looked up by its name in each call, and a constant of this one isn't.
_DECODE_ENVELOPE: Final = decode_envelope
_FIELDS_OF: Final = fields_of

T = TypeVar("T")


class InvalidEvent(ValueError):
    """The record can't be read as an event. `reason` is one of `REASONS`; `detail` is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


# Closed set: metric labels.
REASONS: Final = frozenset(
    {
        "tombstone",
        "json",  # not JSON, or not an object
        "type",
        "id",
        "tenant",
        "content_type",
        "cloudevent",  # a required attribute is missing, or an attribute is unusable
        "headers",  # the head would be too large
    }
)


class EventRecord(Protocol):
    """What decoding needs of a record."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


class Event:
    """One event. Treated as immutable; plain slots, since one is made for every record."""

    __slots__ = (
        "_occurred",
        "_time",
        "body",
        "head",
        "id",
        "lines",
        "tenant",
        "timestamp_ms",
        "type",
        "wire_id",
    )

    lines: bytes | None
    """Type and time as header lines, made with the first request (`core/request/build.py`)."""

    def __init__(
        self,
        id: str,  # noqa: A002 - the field's name
        type: str,  # noqa: A002 - the field's name
        tenant: str | None,
        body: bytes,
        timestamp_ms: int,
        head: bytes,
        time: EventTime = None,
        wire_id: bytes | None = None,
    ) -> None:
        """`timestamp_ms` is the record's. `time` is the event's own: ISO 8601, or Unix seconds.

        `wire_id` is what `wire_id()` makes of the id: None where it goes onto the wire as it is.
        """
        self.id = id
        self.type = type
        self.tenant = tenant
        self.body = body
        self.timestamp_ms = timestamp_ms
        self.head = head
        self._time = time
        self._occurred = timestamp_ms
        self.wire_id = wire_id
        self.lines = None

    def __repr__(self) -> str:
        return f"<Event {self.id} {self.type} tenant={self.tenant!r} {len(self.body)} bytes>"

    @property
    def occurred_ms(self) -> int:
        """When it happened, in Unix milliseconds: its own time if it tells one, else the record's.

        Read when the first request is built, because most records of a topic may match nothing.
        """
        if self._time is not None:
            found = milliseconds(self._time)
            self._time = None  # of many deliveries only the first reads it
            if found is not None:
                self._occurred = found
        return self._occurred


def is_tombstone(record: EventRecord) -> bool:
    """Whether the record says nothing but that its key is gone: no value, and no headers that make it an event."""
    if record.value is not None:
        return False
    headers = dict(record.headers)
    return headers.get("ce_specversion") is None and headers.get("type") is None


def decode(record: EventRecord, topic: str, partition: int) -> Event:
    """Read a record of that partition as an event; raises InvalidEvent, whatever the bytes."""
    value = record.value
    if not record.headers:
        if value is None:
            raise InvalidEvent("tombstone", _TOMBSTONE_DETAIL)
        return _envelope(record, topic, partition, value, JSON_HEAD)
    headers = dict(record.headers)
    media = headers.get("content-type")
    if media is None or (not media and headers.get("ce_specversion") is not None):
        head = JSON_HEAD
    else:
        content_type = _content_type(media)
        head = content_type.line
        if content_type.structured and value is not None:
            return _structured(record, value, head + _trace(headers))
    if headers.get("ce_specversion") is not None:
        return _binary(record, value or b"", headers)
    kind = headers.get("type")
    if value is None:
        if kind is None:
            raise InvalidEvent("tombstone", _TOMBSTONE_DETAIL)
        value = b""
        if media is None:
            head = b""  # of nothing there is no type
    if headers.get("traceparent") is not None:
        head += _trace(headers)
    if kind is None:
        return _envelope(record, topic, partition, value, head)
    raw_id = headers.get("id")
    raw_tenant = headers.get("tenant")
    event_id = fallback_id(topic, partition, record.offset) if raw_id is None else _id_of(raw_id)
    return Event(
        event_id,
        _type_of(kind),
        None if raw_tenant is None else _tenant_of(raw_tenant),
        value,
        record.timestamp,
        head,
        headers.get("timestamp"),
        None if raw_id is None else wire_id(event_id),
    )


def _envelope(record: EventRecord, topic: str, partition: int, value: bytes, head: bytes) -> Event:
    kind, event_id, tenant, created, time = _FIELDS_OF(_routing_fields(value, _DECODE_ENVELOPE))
    if not isinstance(kind, str):
        raise InvalidEvent("type", "the envelope has no type" if kind is MISSING else _TYPE_DETAIL)
    checked_type = _CHECK_TYPE(kind)
    sent: bytes | None = None
    if event_id is None:
        event_id = fallback_id(topic, partition, record.offset)
    elif isinstance(event_id, str):
        sent = wire_id(event_id)
    else:
        raise InvalidEvent("id", _ID_DETAIL)
    if tenant is not None and not (isinstance(tenant, str) and valid_tenant(tenant)):
        raise InvalidEvent("tenant", _TENANT_DETAIL)
    if created is not None:
        time = created
    # A container in its place would be kept alive with the event, unaccounted for.
    if time is not None and not isinstance(time, (str, int, float)):
        time = None
    return Event(event_id, checked_type, tenant, value, record.timestamp, head, time, sent)


def _routing_fields(value: bytes, decode_fields: Callable[[bytes], T]) -> T:
    """What a JSON object is read for, by one of `envelope.py`'s decoders; raises InvalidEvent."""
    try:
        # What is only passed over is not looked at as UTF-8.
        if not value.isascii():
            value.decode()
        try:
            return decode_fields(value)
        except NotJson as error:
            mended = None if isinstance(error, NotAnObject) else without_lone_surrogates(value)
            if mended is None:
                raise
            return decode_fields(mended)
    except NotAnObject:
        raise InvalidEvent("json", _OBJECT_DETAIL) from None
    except (NotJson, UnicodeDecodeError) as error:
        if value.startswith(_MARKS):
            raise InvalidEvent("json", _MARK_DETAIL) from None
        # Neither of them quotes the document.
        raise InvalidEvent("json", f"the value is not JSON: {str(error)[:200]}") from None
    except RecursionError:
        raise InvalidEvent("json", "the value is not JSON that anybody reads: nested too deeply") from None


def without_lone_surrogates(text: bytes, instead: bytes = b"\\uffff") -> bytes | None:
    """A JSON text of the same length with `instead` for each escaped surrogate that is no half of a pair; None where there is none.

    Parsers refuse lone surrogates, since no UTF-8 can say them; RFC 8259 (8.2) doesn't. U+FFFF is in no id and no type either, so
    what routes by one is refused.
    """
    if _SURROGATE.search(text) is None:
        return None

    def mend(found: re.Match[bytes]) -> bytes:
        return found[1] + instead if found[2] is None else found[0]

    mended = _SURROGATES.sub(mend, text)
    return None if mended == text else mended


def _structured(record: EventRecord, value: bytes, head: bytes) -> Event:
    """CloudEvents JSON format 1.0, delivered as it is."""
    document: CloudEvent = _routing_fields(value, decode_cloud_event)
    _check_required(
        {
            "specversion": document.specversion,
            "id": document.id,
            "source": document.source,
            "type": document.type,
        }
    )
    event_id = document.id
    sent = wire_id(event_id)
    tenant = document.tenant
    if tenant is not None and not (isinstance(tenant, str) and valid_tenant(tenant)):
        raise InvalidEvent("tenant", _TENANT_DETAIL)
    time = document.time
    return Event(
        event_id,
        check_type(document.type),
        tenant,
        value,
        record.timestamp,
        head,
        time if isinstance(time, str) else None,
        sent,
    )


def _binary(record: EventRecord, value: bytes, headers: Mapping[str, bytes | None]) -> Event:
    """CloudEvents Kafka binding 1.0.2, 3.2, to HTTP binding 1.0.2, 3.1."""
    attributes: dict[str, str] = {}
    lines: list[bytes] = []
    for name, raw in headers.items():
        if not name.startswith("ce_") or raw is None:
            continue
        prefix = _attribute_line(name)
        attribute = name[3:]
        if _PLAIN_VALUE.fullmatch(raw):
            attributes[attribute] = raw.decode("ascii")
        else:
            attributes[attribute] = _attribute_text(name, raw)
            raw = _escaped(raw)  # noqa: PLW2901 - from here on as it is sent
        if attribute != "datacontenttype":  # travels as Content-Type
            lines += (prefix, raw, b"\r\n")
    _check_required(attributes)
    media = headers.get("content-type")
    if not media or (record.value is None and _content_type(media).structured):
        media = headers.get("ce_datacontenttype")
    default = b"" if record.value is None else JSON_HEAD  # of nothing there is no type
    head = b"".join((_content_type(media).line if media else default, *lines, _trace(headers)))
    if len(head) > MAX_HEAD:
        raise InvalidEvent("headers", f"the attributes take {len(head)} bytes, more than {MAX_HEAD}")
    event_id = attributes["id"]
    sent = wire_id(event_id)
    tenant = attributes.get("tenant")
    if tenant is not None and not valid_tenant(tenant):
        raise InvalidEvent("tenant", _TENANT_DETAIL)
    return Event(
        event_id,
        check_type(attributes["type"]),
        tenant,
        value,
        record.timestamp,
        head,
        attributes.get("time"),
        sent,
    )


@lru_cache(maxsize=1024)
def _attribute_line(name: str) -> bytes:
    """The header that the attribute `ce_...` becomes, as far as its value."""
    if not _ATTRIBUTE_NAME.fullmatch(name, 3):
        raise InvalidEvent("cloudevent", f"{name[:64]!r} names no attribute: only a-z and 0-9 may follow ce_")
    return b"ce-%b: " % name[3:].encode("ascii")


def _escaped(raw: bytes) -> bytes:
    return b"".join([_ESCAPES[byte] for byte in raw])


def _attribute_text(name: str, raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise InvalidEvent("cloudevent", f"{name} is not UTF-8") from None
    if _NOT_IN_ATTRIBUTE.search(text):
        raise InvalidEvent("cloudevent", f"{name} contains a control character")
    return text


def _check_required(attributes: Mapping[str, Any]) -> None:
    """CloudEvents 1.0.2, required attributes."""
    for name in ("specversion", "id", "source", "type"):
        found = attributes.get(name)
        if not isinstance(found, str) or not found:
            raise InvalidEvent("cloudevent", f"the attribute {name} is missing or not a non-empty string")
    if not _SPECVERSION.fullmatch(attributes["specversion"]):
        raise InvalidEvent("cloudevent", "only specversion 1.x is supported")


def fallback_id(topic: str, partition: int, offset: int) -> str:
    """`evt_` and 24 hex digits for a record that brings no id: the same after every redelivery.

    A hash, because topic, partition and offset written out can be longer than an id may be, and
    because subscribers needn't learn the names of topics.
    """
    origin = f"{topic}\0{partition}\0{offset}".encode("utf-8", "surrogatepass")
    return "evt_" + blake2b(origin, digest_size=12).hexdigest()


def valid_id(text: str) -> bool:
    """1 to 1024 bytes of UTF-8 without control characters, surrogates and noncharacters (CloudEvents 1.0.2, String)."""
    return _valid_string(text, MAX_ID)


def _valid_string(text: str, most: int) -> bool:
    if text.isascii():
        return 0 < len(text) <= most and text.isprintable()
    return (
        len(text) <= most
        and _NOT_IN_STRING.search(text) is None
        and len(text.encode()) <= most  # without surrogates, so it can be encoded
    )


def wire_id(text: str) -> bytes | None:
    """What stands for the id in `webhook-id`, where that is not the id itself; raises InvalidEvent for what is no id."""
    # Four C calls cost half of one regular expression.
    if 0 < len(text) <= MAX_ID and text.isascii() and text.isprintable() and " " not in text:
        return None
    if not valid_id(text):
        raise InvalidEvent("id", _ID_DETAIL)
    return wire_text(text)


def wire_text(text: str) -> bytes:
    """A valid id or type as a header's value.

    Visible ASCII is sent as it is. Anything else is percent-encoded like CloudEvents' attributes (HTTP binding
    1.0.2, 3.1.3.2), the percent sign too.
    """
    if text.isascii() and text.isprintable() and " " not in text:
        return text.encode("ascii")
    return _escaped(text.encode())


def valid_tenant(text: str) -> bool:
    """1 to 256 printable characters of any script; not `*`, which means every tenant in a subscription."""
    return 0 < len(text) <= MAX_TENANT and text.isprintable() and text != "*"


def valid_type(text: str) -> bool:
    """What `valid_id` takes. Dots separate the parts that patterns look at."""
    return _valid_string(text, MAX_TYPE)


def valid_head(head: bytes) -> bool:
    """Whether these are lines as `decode` makes them: for a head that comes back from a topic."""
    return len(head) <= MAX_HEAD and _HEAD.fullmatch(head) is not None


def valid_traceparent(value: bytes) -> bool:
    """Whether it is a `traceparent` (W3C Trace Context 1, 3.2)."""
    return len(value) <= _MAX_PARENT and _TRACEPARENT.fullmatch(value) is not None


def valid_tracestate(value: bytes) -> bool:
    """Whether it can be a `tracestate`: visible ASCII, with spaces between."""
    return _TRACESTATE.fullmatch(value) is not None


# The caches below keep what passed (lru_cache keeps no exception), so each key is short and clean.


@lru_cache(maxsize=16_384)
def check_type(text: str) -> str:
    """The type itself: one string object for each, whose hash the index needn't compute again."""
    if not valid_type(text):
        raise InvalidEvent("type", _TYPE_DETAIL)
    return text


_CHECK_TYPE: Final = check_type


@lru_cache(maxsize=16_384)
def _type_of(raw: bytes) -> str:
    if len(raw) > MAX_TYPE:
        raise InvalidEvent("type", _TYPE_DETAIL)
    try:
        return check_type(raw.decode())
    except UnicodeDecodeError:
        raise InvalidEvent("type", _TYPE_DETAIL) from None


@lru_cache(maxsize=16_384)
def _tenant_of(raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = ""
    if not valid_tenant(text):
        raise InvalidEvent("tenant", _TENANT_DETAIL)
    return text


def _id_of(raw: bytes) -> str:
    """Not checked yet."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidEvent("id", _ID_DETAIL) from None


class _ContentType(NamedTuple):
    line: bytes
    structured: bool


@lru_cache(maxsize=1024)
def _content_type(raw: bytes) -> _ContentType:
    if len(raw) > 256 or not _CONTENT_TYPE.fullmatch(raw):
        raise InvalidEvent("content_type", "the content type is not type/subtype with ASCII parameters")
    media = raw.partition(b";")[0].strip().lower()
    return _ContentType(b"Content-Type: %b\r\n" % raw, media == b"application/cloudevents+json")


def _trace(headers: Mapping[str, bytes | None]) -> bytes:
    """W3C trace context as header lines; nothing if `traceparent` isn't exactly as specified."""
    parent = headers.get("traceparent")
    if parent is None or not valid_traceparent(parent):
        return b""
    state = headers.get("tracestate")
    if state is None or not valid_tracestate(state):
        return b"traceparent: %b\r\n" % parent
    return b"traceparent: %b\r\ntracestate: %b\r\n" % (parent, state)


_OBJECT_DETAIL: Final = "the value is JSON, but not an object"
_TOMBSTONE_DETAIL: Final = (
    "the record has no value, and no headers that make it an event (ce_specversion, type)"
)
_MARK_DETAIL: Final = (
    "the value begins with a byte order mark, or is UTF-16: JSON is UTF-8 without a mark (RFC 8259, 8.1)"
)
_TYPE_DETAIL: Final = "a type is a string of 1 to 1024 bytes in UTF-8, without control characters"
_ID_DETAIL: Final = "an id is a string of 1 to 1024 bytes in UTF-8, without control characters"
_TENANT_DETAIL: Final = 'a tenant is a string of 1 to 256 printable characters, and not "*"'

_MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")  # of UTF-8, and of UTF-16 in both orders
# CloudEvents 1.0.2, 3.1: control characters, surrogates that are no pair, noncharacters.
_NOT_IN_STRING = re.compile(
    r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# One that is alone, or a pair, whose second half is group 2, after a row of escaped backslashes, group 1, from its beginning: no half of them
# begins an escape. Other escapes are passed over: half a million of them in a record are no call of Python's each.
_SURROGATES = re.compile(
    rb"\\(?<!\\\\)((?:\\\\)*)"
    rb"(?:u[dD][89abAB][0-9a-fA-F]{2}(\\u[dD][c-fC-F][0-9a-fA-F]{2})|u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_CONTENT_TYPE = re.compile(_TOKEN + b"/" + _TOKEN + rb"(?:[ \t]*;[ -~\t]*)?")
_TRACE_IDS = rb"-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
# Version 00 ends after the flags, ff is forbidden, later versions may add fields (Trace Context 1, 3.2).
_TRACEPARENT = re.compile(b"00" + _TRACE_IDS + rb"|(?!00|ff)[0-9a-f]{2}" + _TRACE_IDS + rb"(?:-[!-~]+)?")
_TRACESTATE = re.compile(rb"[!-~][ -~]{0,510}[!-~]")
_HEAD = re.compile(
    rb"(?:Content-Type: [!-~][\t -~]*\r\n)?(?:(?:ce-[a-z0-9]{1,64}|traceparent|tracestate): [\t -~]*\r\n)*"
)
_SPECVERSION = re.compile(r"1\.[0-9]{1,3}", re.ASCII)
_ATTRIBUTE_NAME = re.compile(r"[a-z0-9]{1,64}", re.ASCII)
_NOT_IN_ATTRIBUTE = re.compile("[\x00-\x1f\x7f-\x9f]")
# HTTP binding 3.1.3.2: everything but visible ASCII without the double quote and the percent sign is escaped.
_PLAIN_VALUE = re.compile(rb"[!#$&-~]*")
_ESCAPES: Final = tuple(
    bytes((byte,)) if _PLAIN_VALUE.fullmatch(bytes((byte,))) else b"%%%02X" % byte for byte in range(256)
)
