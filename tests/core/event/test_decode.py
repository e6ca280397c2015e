"""Decoding: the four formats, their precedence, and that no record can hurt."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

import orjson
import pytest
from hypothesis import example, given, settings, strategies as st

from dispatcher.core.event.decode import (
    JSON_HEAD,
    MAX_HEAD,
    REASONS,
    Event,
    InvalidEvent,
    decode as decode_of,
    fallback_id,
    is_tombstone,
    valid_head,
    valid_id,
    valid_tenant,
    valid_type,
    without_lone_surrogates,
)
from tests.core.nesting import NESTED

Headers = Sequence[tuple[str, bytes | None]]


@dataclass
class Rec:
    value: bytes | None
    headers: Headers = ()
    offset: int = 42
    timestamp: int = 1_700_000_000_123
    key: bytes | None = field(default=None)


def decode(record: Rec) -> Event:
    return decode_of(record, "events", 3)


def envelope(**members: object) -> bytes:
    return json.dumps({"type": "book.published", **members}).encode()


def binary(*more: tuple[str, bytes | None], **attributes: str | None) -> Headers:
    given: dict[str, str | None] = {
        "specversion": "1.0",
        "id": "ce-1",
        "source": "/shop",
        "type": "book.published",
    }
    given.update(attributes)
    return [*((f"ce_{name}", text.encode()) for name, text in given.items() if text is not None), *more]


def structured(**members: object) -> bytes:
    given = {"specversion": "1.0", "id": "ce-1", "source": "/shop", "type": "book.published"}
    return json.dumps({**given, **members}).encode()


STRUCTURED: Headers = [("content-type", b"application/cloudevents+json")]
PARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def reason(value: bytes | None, headers: Headers = ()) -> str:
    with pytest.raises(InvalidEvent) as caught:
        decode(Rec(value, headers))
    assert caught.value.reason in REASONS
    assert caught.value.detail
    return caught.value.reason


def lines(event: Event) -> list[str]:
    *found, last = event.head.decode("ascii").split("\r\n")
    assert last == ""
    return found


# The four formats


def test_an_envelope_gives_its_routing_members_and_stays_as_it_was_published() -> None:
    value = b' {"id": "evt_1", "type":"book.published", "created":1486697174, "tenant":"acme", "data":{}} '
    event = decode(Rec(value))
    assert (event.id, event.type, event.tenant) == ("evt_1", "book.published", "acme")
    assert event.body is value
    assert event.timestamp_ms == 1_700_000_000_123
    assert event.occurred_ms == 1_486_697_174_000
    assert event.head is JSON_HEAD


def test_an_envelope_needs_a_type_only() -> None:
    event = decode(Rec(b'{"type":"ping"}'))
    assert (event.type, event.tenant, event.occurred_ms) == ("ping", None, event.timestamp_ms)
    assert event.id == fallback_id("events", 3, 42)


def test_an_envelope_takes_content_type_and_trace_from_headers() -> None:
    event = decode(Rec(envelope(), [("content-type", b"application/vnd.x+json"), ("traceparent", PARENT)]))
    assert lines(event) == ["Content-Type: application/vnd.x+json", f"traceparent: {PARENT.decode()}"]


def test_header_routing_leaves_the_value_unparsed() -> None:
    value = b"\xff\x00 not json"
    event = decode(
        Rec(
            value,
            [
                ("type", b"a.b"),
                ("id", b"msg-1"),
                ("tenant", "Zürich".encode()),
                ("timestamp", b"1486697174"),
                ("content-type", b"application/x-protobuf; proto=x"),
                ("something", b"else"),
            ],
        )
    )
    assert (event.id, event.type, event.tenant) == ("msg-1", "a.b", "Zürich")
    assert event.body is value
    assert event.occurred_ms == 1_486_697_174_000
    assert lines(event) == ["Content-Type: application/x-protobuf; proto=x"]


def test_header_routing_needs_a_type_only_and_an_empty_value_is_a_value() -> None:
    event = decode(Rec(b"", [("type", b"ping")]))
    assert (event.id, event.tenant, event.body) == (fallback_id("events", 3, 42), None, b"")
    assert event.head is JSON_HEAD


def test_cloudevents_binary_becomes_http_binary_mode() -> None:
    event = decode(
        Rec(
            b"data",
            binary(
                ("content-type", b"text/plain"),
                ("ce_datacontenttype", b"application/ignored"),
                ("traceparent", PARENT),
                ("type", b"not.this.one"),
                source='/caf\u00e9 "%',
                time="2017-02-10T03:26:14Z",
                tenant="acme",
                empty="",
            ),
        )
    )
    assert (event.id, event.type, event.tenant) == ("ce-1", "book.published", "acme")
    assert event.occurred_ms == 1_486_697_174_000
    assert lines(event) == [
        "Content-Type: text/plain",
        "ce-specversion: 1.0",
        "ce-id: ce-1",
        "ce-source: /caf%C3%A9%20%22%25",
        "ce-type: book.published",
        "ce-time: 2017-02-10T03:26:14Z",
        "ce-tenant: acme",
        "ce-empty: ",
        f"traceparent: {PARENT.decode()}",
    ]


def test_cloudevents_binary_takes_the_content_type_from_its_attribute_if_need_be() -> None:
    assert lines(decode(Rec(b"", binary(datacontenttype="text/xml"))))[0] == "Content-Type: text/xml"
    empty = [("content-type", b""), *binary(datacontenttype="text/xml")]
    assert lines(decode(Rec(b"", empty)))[0] == "Content-Type: text/xml"
    assert lines(decode(Rec(b"", binary())))[0] == "Content-Type: application/json"


@pytest.mark.parametrize(
    "media",
    [
        b"application/cloudevents+json",
        b"application/cloudevents+json; charset=UTF-8",
        b"Application/CloudEvents+JSON;charset=utf-8",
    ],
)
def test_cloudevents_structured_is_delivered_as_it_is(media: bytes) -> None:
    value = structured(tenant="acme", time="2017-02-10T03:26:14Z", data={"x": 1})
    event = decode(Rec(value, [("content-type", media), ("type", b"not.this.one"), ("traceparent", PARENT)]))
    assert (event.id, event.type, event.tenant) == ("ce-1", "book.published", "acme")
    assert event.body is value
    assert event.occurred_ms == 1_486_697_174_000
    assert lines(event) == [f"Content-Type: {media.decode()}", f"traceparent: {PARENT.decode()}"]


def test_the_formats_are_tried_in_the_order_of_the_design() -> None:
    everything = [*STRUCTURED, *binary(type="by.binary"), ("type", b"by.header"), ("id", b"by-header")]
    value = structured(type="by.structure")
    # The content type says what the value is, whatever else a producer's library adds (Kafka binding 1.0.2, 3).
    found = decode(Rec(value, everything))
    assert (found.type, lines(found)) == ("by.structure", ["Content-Type: application/cloudevents+json"])
    assert decode(Rec(value, everything[1:])).type == "by.binary"
    assert decode(Rec(value, everything[-2:])).type == "by.header"
    assert decode(Rec(value, [])).type == "by.structure"


def test_of_headers_with_one_name_the_last_counts() -> None:
    event = decode(Rec(b"", [("type", b"a.b"), ("id", b"first"), ("type", b"c.d"), ("id", b"last")]))
    assert (event.type, event.id) == ("c.d", "last")
    twice = binary(("ce_id", b"last"))
    event = decode(Rec(b"", twice))
    assert event.id == "last"
    assert lines(event).count("ce-id: last") == 1
    assert "ce-id: ce-1" not in lines(event)


def test_a_header_without_a_value_counts_as_absent() -> None:
    absent: Headers = [
        ("ce_specversion", None),
        ("content-type", None),
        ("type", None),
        ("traceparent", None),
    ]
    event = decode(Rec(envelope(id="e", tenant="t"), absent))
    assert (event.id, event.tenant, event.head) == ("e", "t", JSON_HEAD)
    event = decode(Rec(b"", [("type", b"a"), ("id", None), ("tenant", None), ("timestamp", None)]))
    assert (event.id, event.tenant) == (fallback_id("events", 3, 42), None)
    assert "ce-x" not in decode(Rec(b"", binary(("ce_x", None)))).head.decode()


def test_header_names_are_compared_exactly() -> None:
    assert (
        decode(Rec(envelope(), [("Type", b"by.header"), ("CE_SpecVersion", b"1.0")])).type == "book.published"
    )


# What is refused


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"{",
        b"not json",
        b"[]",
        b'["type"]',
        b'"type"',
        b"null",
        b"1",
        b'{"type":"a"}x',
        b'{"type":"a",}',
        b"{'type':'a'}",
        b'\xef\xbb\xbf{"type":"a"}',  # a byte order mark
        '{"type":"a"}'.encode("utf-16"),
        b'{"type":"a","data":"\xff"}',
        b'{"type":"a","data":"\xed\xa0\x80"}',  # a surrogate in UTF-8
        b'{"type":"a","data":NaN}',
        b'{"type":"a","data":Infinity}',
        b'{"type":"a","data":-}',
        b'{"type":"a","data":01}',
        b'{"type":"a","data":"\n"}',
        b'{"type":"a","data":' + b"[" * 100_000,
        b'{"type":"a","data":' + b"[" * NESTED + b"]" * NESTED + b"}",
        b'{"a":' * NESTED + b"1" + b"}" * NESTED,
    ],
)
def test_what_is_not_a_json_object_is_no_envelope_and_no_structured_event(value: bytes) -> None:
    assert reason(value) == "json"
    assert reason(value, STRUCTURED) == "json"


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"])
def test_a_byte_order_mark_is_named(mark: bytes) -> None:
    for value, headers in ((mark + envelope(), ()), (mark + structured(), STRUCTURED)):
        with pytest.raises(InvalidEvent, match="byte order mark") as caught:
            decode(Rec(value, headers))
        assert caught.value.reason == "json"


def test_a_record_without_a_value_is_a_tombstone_unless_headers_make_it_an_event() -> None:
    absent: Headers = [("ce_specversion", None), ("type", None)]
    for headers in ([], [("id", b"x"), ("tenant", b"acme")], STRUCTURED, absent):
        assert reason(None, headers) == "tombstone"
        assert is_tombstone(Rec(None, headers))
    for headers in ([("type", b"a")], binary()):
        assert not is_tombstone(Rec(None, headers))
    assert not is_tombstone(Rec(b""))


def test_an_event_without_data_has_an_empty_body_and_no_content_type() -> None:
    """CloudEvents Kafka binding 1.0.2, 3.2.2: "an event with no data is a Kafka message with no value"."""
    event = decode(Rec(None, binary(id="ce-9")))
    assert (event.id, event.type, event.body) == ("ce-9", "book.published", b"")
    assert lines(event) == [
        "ce-specversion: 1.0",
        "ce-id: ce-9",
        "ce-source: /shop",
        "ce-type: book.published",
    ]
    event = decode(Rec(None, [("type", b"ping"), ("id", b"evt_1"), ("traceparent", PARENT)]))
    assert (event.id, event.type, event.body) == ("evt_1", "ping", b"")
    assert lines(event) == [f"traceparent: {PARENT.decode()}"]
    event = decode(Rec(None, [("type", b"ping"), ("content-type", b"text/plain")]))
    assert (event.body, lines(event)) == (b"", ["Content-Type: text/plain"])
    # Structured, it would have a value: so it isn't, and nobody is told so.
    event = decode(Rec(None, [*STRUCTURED, *binary()]))
    assert (event.type, lines(event)[0]) == ("book.published", "ce-specversion: 1.0")


# What CloudEvents 1.0.2 (3.1, String) leaves out: control characters, surrogates, noncharacters. The limit is ours.
BAD_TEXTS = [
    "",
    "a\n",
    "a\r\nX: y",
    "a\0",
    "\x7f",
    "a\x85",
    "\ufdd0",
    "\uffff",
    "\U0010fffe",
    "x" * 1025,
    "\u00e9" * 513,
]
GOOD_TEXTS = [
    "a",
    "!~",
    "x" * 1024,
    "\u00e9" * 512,
    'quote"s',
    "a%20b",
    "evt_19lV",
    " ",
    "a b",
    "\u00e9",
    "\u200b",
    "com.example/order:created v2",
    "A.b-c.d_e.0",
    ".",
    "a..b",
    ".a",
    "a*",
    "*",
    "urn:\u8a02\u55ae\U0001f600",
]


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_a_type_has_no_control_characters(text: str) -> None:
    assert not valid_type(text)
    assert reason(envelope(type=text)) == "type"
    assert reason(b"", [("type", text.encode())]) == "type"
    if text:
        assert reason(structured(type=text), STRUCTURED) == "type"
    assert reason(b"", binary(type=text)) in {"type", "cloudevent"}


@pytest.mark.parametrize("text", GOOD_TEXTS)
def test_a_type_of_cloudevents_is_taken(text: str) -> None:
    assert valid_type(text)
    assert decode(Rec(envelope(type=text))).type == text
    assert decode(Rec(b"", [("type", text.encode())])).type == text
    assert decode(Rec(structured(type=text), STRUCTURED)).type == text
    assert decode(Rec(b"", binary(type=text))).type == text


@pytest.mark.parametrize("value", [None, 1, True, ["a"], {"a": 1}, 1.5])
def test_routing_members_of_an_envelope_are_strings(value: object) -> None:
    assert reason(envelope(type=value)) == "type"
    if value is not None:
        assert reason(envelope(id=value)) == "id"
        assert reason(envelope(tenant=value)) == "tenant"
    assert reason(structured(type=value), STRUCTURED) == "cloudevent"
    assert reason(structured(id=value), STRUCTURED) == "cloudevent"


def test_an_envelope_without_a_type_is_told_so() -> None:
    with pytest.raises(InvalidEvent, match="has no type"):
        decode(Rec(b"{}"))


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_an_id_has_no_control_characters(text: str) -> None:
    assert not valid_id(text)
    assert reason(envelope(id=text)) == "id"
    assert reason(b"", [("type", b"a"), ("id", text.encode())]) == "id"
    assert reason(structured(id=text), STRUCTURED) in {"id", "cloudevent"}
    assert reason(b"", binary(id=text)) in {"id", "cloudevent"}


@pytest.mark.parametrize("text", GOOD_TEXTS)
def test_an_id_of_cloudevents_is_taken_as_it_is(text: str) -> None:
    assert valid_id(text)
    events = [
        decode(Rec(envelope(id=text))),
        decode(Rec(b"", [("type", b"a"), ("id", text.encode())])),
        decode(Rec(structured(id=text), STRUCTURED)),
        decode(Rec(b"", binary(id=text))),
    ]
    for event in events:
        assert event.id == text
        if text.isascii() and " " not in text:
            assert event.wire_id is None  # goes as it is
        else:
            assert event.wire_id is not None
            assert event.wire_id.isascii()
            assert unquote_to_bytes(event.wire_id) == text.encode()
            assert not set(event.wire_id) & set(b" \t\r\n\x7f")


def test_a_lone_surrogate_passes_in_what_is_not_routed_by_and_nowhere_else() -> None:
    """`JSON.stringify` writes it; RFC 8259 8.2 allows it, though it names no character."""
    for lone in (b"\\ud83d", b"\\uDE00", b"\\ud83d\\ud83d\\ude00", b"\\ud83d\\\\ude00"):
        value = b'{"type":"a","id":"e","data":{"text":"x' + lone + b'","' + lone + b'":1}}'
        event = decode(Rec(value))
        assert (event.type, event.id) == ("a", "e")
        assert event.body is value
        value = structured(extension=1)[:-1] + b',"data":"' + lone + b'"}'
        assert decode(Rec(value, STRUCTURED)).body is value
    assert reason(b'{"type":"a\\ud83d"}') == "type"
    assert reason(b'{"type":"a","id":"a\\ud83d"}') == "id"
    assert reason(b'{"type":"a","tenant":"a\\ud83d"}') == "tenant"
    assert reason(b'{"type":"a","data":"\\ud83d"') == "json"
    assert reason(b'{"type":"a","data":"\\\\ud83d\\q"}') == "json"  # no surrogate: its backslash is escaped
    # A pair is a character.
    assert decode(Rec(b'{"type":"\\ud83d\\ude00"}')).type == "\U0001f600"


@pytest.mark.parametrize("row", range(8))
@pytest.mark.parametrize("before", [b"", b"x", b"\\n", b"\\ud83d\\ude00"])
def test_a_surrogate_is_one_where_its_backslash_is_not_escaped(before: bytes, row: int) -> None:
    backslashes, escaped = b"\\" * row, row % 2 == 0
    for half in (b"ud83d", b"uDE00"):
        expected = None if escaped else before + backslashes + b"uffff\\t"
        assert without_lone_surrogates(before + backslashes + half + b"\\t") == expected
    pair = before + backslashes + b"ud83d\\ude00"
    # Of what is no surrogate the second half is alone.
    assert without_lone_surrogates(pair) == (pair[:-6] + b"\\uffff" if escaped else None)


@pytest.mark.parametrize("text", ["", "*", "a\n", "a\0b", "\u2028", "\u200b", "x" * 257])
def test_a_tenant_is_printable_and_not_the_one_for_all(text: str) -> None:
    assert not valid_tenant(text)
    assert reason(envelope(tenant=text)) == "tenant"
    assert reason(b"", [("type", b"a"), ("tenant", text.encode())]) == "tenant"
    assert reason(structured(tenant=text), STRUCTURED) == "tenant"
    assert reason(b"", binary(tenant=text)) in {"tenant", "cloudevent"}


def test_bytes_that_are_no_text_are_refused_where_text_is_wanted() -> None:
    assert reason(b"", [("type", b"\xff")]) == "type"
    assert reason(b"", [("type", b"a"), ("id", b"\xff")]) == "id"
    assert reason(b"", [("type", b"a"), ("tenant", b"\xff")]) == "tenant"
    assert reason(b"", binary(("ce_x", b"\xff"))) == "cloudevent"
    assert reason(b"", binary(("ce_specversion", b"\xff"))) == "cloudevent"


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
def test_what_cloudevents_requires_is_required(name: str) -> None:
    if name != "specversion":  # without that one it is no CloudEvent in binary mode
        assert reason(b"", binary(**{name: None})) == "cloudevent"
    assert reason(b"", binary(**{name: ""})) == "cloudevent"
    assert reason(structured(**{name: ""}), STRUCTURED) == "cloudevent"
    assert reason(structured(**{name: None}), STRUCTURED) == "cloudevent"
    assert reason(structured(**{name: 1}), STRUCTURED) == "cloudevent"


@pytest.mark.parametrize("version", ["0.3", "2.0", "1", "1.", "1.x", "1.0 ", "\u0661.0", "1.0\n"])
def test_only_cloudevents_1_is_taken(version: str) -> None:
    assert reason(b"", binary(specversion=version)) == "cloudevent"
    assert reason(structured(specversion=version), STRUCTURED) == "cloudevent"


@pytest.mark.parametrize(
    "name", ["ce_", "ce_A", "ce_a-b", "ce_a_b", "ce_a b", "ce_a:", "ce_\u00e4", "ce_a\r\nx", "ce_" + "a" * 65]
)
def test_an_attribute_name_that_can_not_be_a_header_is_refused(name: str) -> None:
    assert reason(b"", binary((name, b"x"))) == "cloudevent"


def test_an_attribute_with_a_control_character_is_refused() -> None:
    for text in ("\0", "\r", "\n", "a\r\nX: y", "\x1f", "\x7f", "\x85"):
        assert reason(b"", binary(x=text)) == "cloudevent"


def test_attributes_take_no_more_than_servers_accept_of_headers() -> None:
    assert reason(b"", binary(x="y" * MAX_HEAD)) == "headers"
    assert reason(b"", binary(*((f"ce_x{n}", b"y" * 100) for n in range(200)))) == "headers"
    assert len(decode(Rec(b"", binary(x="y" * (MAX_HEAD // 2)))).head) < MAX_HEAD


BAD_MEDIA = [
    b"",
    b"json",
    b"a/",
    b"/b",
    b"a/b c",
    b"a/b\r\nX: y",
    b"a/b\n",
    b"a/b;\0",
    b"a/b; x=\xff",
    b" a/b",
    b"a/" + b"b" * 256,
]


@pytest.mark.parametrize("media", BAD_MEDIA)
def test_a_content_type_that_would_break_the_request_is_refused(media: bytes) -> None:
    assert reason(envelope(), [("content-type", media)]) == "content_type"
    assert reason(b"", [("type", b"a"), ("content-type", media)]) == "content_type"
    if media:
        assert reason(b"", binary(("content-type", media))) == "content_type"


# What is dropped


@pytest.mark.parametrize(
    "parent",
    [
        b"",
        b"00",
        PARENT + b"\r\nX: y",
        PARENT + b"\n",
        PARENT + b"-extra",
        PARENT[:-1],
        PARENT.upper(),
        b"ff" + PARENT[2:],
        b"0g" + PARENT[2:],
        b"00-" + b"0" * 32 + PARENT[35:],
        PARENT[:36] + b"0" * 16 + PARENT[52:],
        b"01" + PARENT[2:] + b"x",
        b"01" + PARENT[2:] + b"-" + b"x" * 500,
        b"\xff" * 55,
    ],
)
def test_a_traceparent_not_as_specified_is_dropped_with_its_tracestate(parent: bytes) -> None:
    headers: Headers = [("type", b"a"), ("traceparent", parent), ("tracestate", b"a=b")]
    assert decode(Rec(b"", headers)).head == JSON_HEAD


@pytest.mark.parametrize("parent", [PARENT, b"01" + PARENT[2:], b"fe" + PARENT[2:] + b"-more"])
@pytest.mark.parametrize("value", [b"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", b"a=b"])
def test_trace_context_is_passed_through(parent: bytes, value: bytes) -> None:
    for record in (
        Rec(b"", [("type", b"a"), ("traceparent", parent), ("tracestate", value)]),
        Rec(envelope(), [("traceparent", parent), ("tracestate", value)]),
        Rec(structured(), [*STRUCTURED, ("traceparent", parent), ("tracestate", value)]),
        Rec(b"", binary(("traceparent", parent), ("tracestate", value))),
    ):
        expected = [f"traceparent: {parent.decode()}", f"tracestate: {value.decode()}"]
        assert lines(decode(record))[-2:] == expected


@pytest.mark.parametrize("value", [b"", b" ", b"a=b\r\nX: y", b"a=\0", b"a=\xff", b"x" * 513])
def test_a_tracestate_that_would_break_the_request_is_dropped_alone(value: bytes) -> None:
    event = decode(Rec(b"", [("type", b"a"), ("traceparent", PARENT), ("tracestate", value)]))
    assert lines(event)[1:] == [f"traceparent: {PARENT.decode()}"]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"created": 0}, 0),
        ({"created": 1486697174}, 1_486_697_174_000),
        ({"created": 1486697174.25}, 1_486_697_174_250),
        ({"created": "1486697174"}, 1_486_697_174_000),
        ({"created": "2017-02-10T03:26:14Z"}, 1_486_697_174_000),
        ({"timestamp": "2017-02-10T03:26:14Z"}, 1_486_697_174_000),
        ({"timestamp": "2017-02-10T03:26:14.250Z"}, 1_486_697_174_250),
        ({"timestamp": "2017-02-10T04:26:14+01:00"}, 1_486_697_174_000),
        ({"timestamp": "2017-02-10T03:26:14"}, 1_486_697_174_000),  # without an offset: UTC
        ({"timestamp": "1969-12-31T23:59:59Z"}, -1000),
        ({"timestamp": 1486697174}, 1_486_697_174_000),
        ({"created": 1, "timestamp": 2}, 1000),
        ({"created": None, "timestamp": 2}, 2000),
    ],
)
def test_the_time_of_an_envelope_is_seconds_or_iso_8601(members: dict[str, object], expected: int) -> None:
    assert decode(Rec(envelope(**members))).occurred_ms == expected


@pytest.mark.parametrize(
    "time",
    [
        "",
        "yesterday",
        "2017-02-30T00:00:00Z",
        "9" * 400,
        -1,
        1e300,
        2**63,
        True,
        [1],
        {"a": 1},
        "\u0661",
    ],
)
def test_a_time_that_can_not_be_read_leaves_the_records(time: object) -> None:
    event = decode(Rec(envelope(created=time)))
    assert event.occurred_ms == event.timestamp_ms


@pytest.mark.parametrize("time", [b"", b"\xff\xfe", b"yesterday", b"9" * 400])
def test_a_time_header_that_can_not_be_read_leaves_the_records(time: bytes) -> None:
    event = decode(Rec(b"", [("type", b"a"), ("timestamp", time)]))
    assert event.occurred_ms == event.timestamp_ms


def test_the_earliest_moment_that_can_be_written_is_a_time_too() -> None:
    event = decode(Rec(envelope(timestamp="0001-01-01T00:00:00+23:59")))
    assert event.occurred_ms == -62_135_683_140_000


def test_of_duplicate_keys_the_last_counts() -> None:
    event = decode(Rec(b'{"type":"a","id":"first","type":"b","id":"last"}'))
    assert (event.type, event.id) == ("b", "last")


def test_numbers_of_any_size_in_the_data_are_none_of_our_business() -> None:
    value = b'{"type":"a","data":[' + b"9" * 300 + b",1e-400,-0]}"
    assert decode(Rec(value)).body is value
    larger = value.replace(b"9", b"9" * 20)  # than any double: RFC 8259 has no limit, some receivers do
    assert decode(Rec(larger)).body is larger


PIECES = st.sampled_from(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b":",
        b",",
        b"\\",
        b"\\u00e9",
        b"\\ud83d",
        b"\xc3\xa9",
        b"\xff",
        b"\x00",
        b"1.5",
        b"-",
        b"e",
        b"null",
    ]
)


@given(st.integers(0, 120), st.integers(0, 4), PIECES)
def test_what_is_only_passed_over_is_json_all_the_same(place: int, cut: int, piece: bytes) -> None:
    """As strict as a parser that reads everything; a number is none of the pieces that may grow too large."""
    value = envelope(
        id="evt_1", type="a.b", data={"list": [1, {"x": None}], "text": "caf\u00e9 \n", "flag": True}
    )
    mutated = value[:place] + piece + value[place + cut :]
    try:
        whole = orjson.loads(without_lone_surrogates(mutated) or mutated)
    except orjson.JSONDecodeError:
        assert reason(mutated) == "json"
    else:
        if isinstance(whole, dict) and whole.get("type") == "a.b" and whole.get("id") == "evt_1":
            event = decode(Rec(mutated))
            assert (event.id, event.type, event.body) == ("evt_1", "a.b", mutated)


@pytest.mark.parametrize("depth", [NESTED, 200_000])
def test_nesting_without_end_is_no_json_that_anybody_reads(depth: int) -> None:
    assert reason(b'{"type":"a","data":' + b"[" * depth + b"]" * depth + b"}") == "json"


# Ids of our own


def test_a_record_without_an_id_has_the_same_one_after_every_redelivery() -> None:
    assert fallback_id("events", 3, 42) == "evt_41ea9ca9e9eebef9b6586d1d"
    first, again = decode(Rec(b'{"type":"a"}')), decode(Rec(b'{"type":"b"}', [("type", b"c")], timestamp=9))
    assert first.id == again.id == fallback_id("events", 3, 42)


@given(
    st.tuples(
        st.from_regex(r"[a-zA-Z0-9._-]{1,249}", fullmatch=True), st.integers(0, 2**31), st.integers(0, 2**63)
    ),
    st.tuples(
        st.from_regex(r"[a-zA-Z0-9._-]{1,249}", fullmatch=True), st.integers(0, 2**31), st.integers(0, 2**63)
    ),
)
@example(("a", 1, 11), ("a", 11, 1))
@example(("a-1", 1, 1), ("a", 1, 1))
def test_ids_of_our_own_are_valid_and_differ_with_the_place(
    one: tuple[str, int, int], other: tuple[str, int, int]
) -> None:
    assert valid_id(fallback_id(*one))
    assert (fallback_id(*one) == fallback_id(*other)) == (one == other)


# Whatever comes

NAMES = st.one_of(
    st.sampled_from(
        [
            *(
                "ce_specversion",
                "ce_id",
                "ce_source",
                "ce_type",
                "ce_tenant",
                "ce_time",
                "ce_datacontenttype",
            ),
            *("ce_x", "content-type", "type", "id", "tenant", "timestamp", "traceparent", "tracestate"),
        ]
    ),
    st.text(max_size=8),
    st.text(max_size=8).map("ce_{}".format),
)
VALUES = st.one_of(
    st.none(),
    st.binary(max_size=40),
    st.sampled_from(
        [
            *(b"1.0", b"a.b", b"/s", b"application/cloudevents+json", b"text/plain", PARENT, b"a=b"),
            *(b"a\r\nX: y", b"\n", b"\0", b"2017-02-10T03:26:14Z", b"*", "\u00e9\u20ac".encode()),
        ]
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))
DOCUMENTS = st.dictionaries(
    st.sampled_from(
        ["type", "id", "tenant", "created", "timestamp", "specversion", "source", "time", "data"]
    ),
    st.one_of(SCALARS, st.sampled_from(["a.b", "1.0", "x\r\ny"]), st.lists(SCALARS, max_size=3)),
).map(lambda document: json.dumps(document).encode("utf-8", "surrogatepass"))
BODIES = st.one_of(st.none(), st.binary(max_size=100), DOCUMENTS)


def check(event: Event) -> None:
    assert valid_id(event.id)
    assert valid_type(event.type)
    assert event.tenant is None or valid_tenant(event.tenant)
    assert isinstance(event.occurred_ms, int)
    assert re.fullmatch(rb"(?:Content-Type: [!-~][\t -~]*\r\n)?(?:[a-z0-9-]+: [\t -~]*\r\n)*", event.head)
    assert len(event.head) <= MAX_HEAD
    assert valid_head(event.head)


@settings(max_examples=500)
@given(BODIES, st.lists(st.tuples(NAMES, VALUES), max_size=10))
def test_no_record_does_anything_but_decode_or_be_invalid(
    value: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    record = Rec(value, headers)
    try:
        event = decode(record)
    except InvalidEvent as invalid:
        known = invalid.reason in REASONS and bool(invalid.detail)
        if not known:
            raise
        return
    check(event)
    assert event.body == b"" if value is None else event.body is value


TYPES = st.text(min_size=1, max_size=40).filter(valid_type)
IDS = st.text(min_size=1, max_size=256).filter(valid_id)
TENANTS = st.one_of(st.none(), st.text(min_size=1, max_size=256).filter(valid_tenant))


@given(TYPES, IDS, TENANTS, st.binary(max_size=50))
def test_every_format_gives_back_what_was_put_in(
    type_: str, id_: str, tenant: str | None, data: bytes
) -> None:
    document = {"type": type_, "id": id_, "source": "/x", "specversion": "1.0"}
    headers: list[tuple[str, bytes | None]] = [("type", type_.encode()), ("id", id_.encode())]
    if tenant is not None:
        document["tenant"] = tenant
        headers.append(("tenant", tenant.encode()))
    value = orjson.dumps(document)
    attributes: Headers = [(f"ce_{name}", text.encode()) for name, text in document.items()]
    for record in (Rec(value), Rec(data, headers), Rec(data, attributes), Rec(value, STRUCTURED)):
        event = decode(record)
        check(event)
        assert (event.type, event.id, event.tenant) == (type_, id_, tenant)
        assert event.body is record.value


@given(st.dictionaries(st.from_regex(r"x[a-z0-9]{0,19}", fullmatch=True), st.text(max_size=40), max_size=5))
def test_a_receiver_reads_the_attributes_that_were_published(attributes: dict[str, str]) -> None:
    clean = {
        name: text
        for name, text in attributes.items()
        if not re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text)
    }
    event = decode(Rec(b"", binary(**clean)))
    received = dict(line.split(": ", 1) for line in lines(event)[1:])
    for name, text in clean.items():
        assert re.fullmatch(r"[!#$&-~%]*", received[f"ce-{name}"])
        assert unquote_to_bytes(received[f"ce-{name}"]).decode() == text


def test_a_head_from_elsewhere_is_valid_only_if_decode_could_have_made_it() -> None:
    good = decode(Rec(b"", binary(("traceparent", PARENT)))).head
    assert valid_head(good)
    assert valid_head(JSON_HEAD)
    assert valid_head(b"")  # of an event without data
    for bad in (
        good[:-1],
        good + b"x",
        good + b"\r\n",
        good + b"Host: evil\r\n",
        good + b"webhook-id: x\r\n",
        good + b"Content-Length: 0\r\n",
        good + b"Transfer-Encoding: chunked\r\n",
        good.replace(b"\r\n", b"\n"),
        good.replace(b"/shop", b"/sh\0p"),
        good.replace(b"/shop", b"/sh\rop"),
        good.replace(b"/shop", b"/sh\xffop"),
        b"ce-x: y\r\n" + good,
        good + b"ce-x: " + b"y" * MAX_HEAD + b"\r\n",
    ):
        assert not valid_head(bad), bad
