"""The delivered request, read back with a parser we did not write; and attacks on it from every source."""

import json
import re
import time
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httptools
import pytest
from hypothesis import given, strategies as st
from standardwebhooks.webhooks import Webhook

from dispatcher import __about__
from dispatcher.core.event.decode import JSON_HEAD, Event, InvalidEvent, decode as decode_of, valid_id
from dispatcher.core.request.build import (
    MAX_OWN_HEADER_VALUE,
    Template,
    build,
    check_header,
    retarget,
    template,
)
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.signing import make_signers
from dispatcher.core.request.urls import Blocked, Origin, Target

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SIGNERS = make_signers([SECRET], ["v1"])
NOW = 1_614_265_330
PARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@dataclass
class Rec:
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    offset: int = 0
    timestamp: int = 1_700_000_000_123


def decode(record: Rec) -> Event:
    return decode_of(record, "events", 0)


class Parsed:
    """One request as llhttp, strict, reads it."""

    def __init__(self, raw: bytes) -> None:
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.target = ""
        self.complete = 0
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(raw)
        self.method = parser.get_method()
        self.version = parser.get_http_version()
        self.keep_alive = parser.should_keep_alive()

    def on_url(self, url: bytes) -> None:
        self.target += url.decode("ascii")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("ascii"), value.decode("ascii")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1

    def __getitem__(self, name: str) -> str:
        (value,) = [value for known, value in self.headers if known.lower() == name.lower()]
        return value

    @property
    def names(self) -> list[str]:
        return [name.lower() for name, _ in self.headers]


def sub(
    url: str = "https://hooks.acme.example/webhooks",
    headers: tuple[tuple[str, str], ...] = (),
    *,
    thin: bool = False,
) -> Template:
    return template(Guard().check_url(url), headers, SIGNERS, thin=thin)


def an_event(body: bytes = b'{"type":"a.b"}', head: bytes = JSON_HEAD) -> Event:
    return Event("evt_1", "a.b", None, body, 1_700_000_000_123, head)


def test_the_request_is_the_one_of_the_design_byte_for_byte() -> None:
    subscription = sub(headers=(("Authorization", "Bearer abc"), ("X-Env", "prod")))
    signature = SIGNERS.header_lines(b"evt_1", b"1614265330", b'{"type":"a.b"}').decode()
    assert build(subscription, an_event(), NOW).decode() == (
        "POST /webhooks HTTP/1.1\r\n"
        "Host: hooks.acme.example\r\n"
        f"User-Agent: dispatcher/{__about__.__version__}\r\n"
        "Content-Type: application/json\r\n"
        "webhook-event-type: a.b\r\n"
        "webhook-event-time: 2023-11-14T22:13:20.123Z\r\n"
        "webhook-id: evt_1\r\n"
        "webhook-timestamp: 1614265330\r\n"
        f"{signature}"
        "Content-Length: 14\r\n"
        "Authorization: Bearer abc\r\n"
        "X-Env: prod\r\n"
        "\r\n"
        '{"type":"a.b"}'
    )


@pytest.mark.parametrize(
    "record",
    [
        Rec(b'{"amount": 42}', (("type", b"invoice.paid"), ("timestamp", b"2017-02-10T04:26:14.5+01:00"))),
        Rec(b'{"type":"invoice.paid","created":1486697174.5,"data":{"amount":42}}', ()),
        Rec(
            b'{"specversion":"1.0","id":"e","source":"/s","type":"invoice.paid","time":"2017-02-10T03:26:14.500Z"}',
            (("content-type", b"application/cloudevents+json"),),
        ),
        Rec(
            None,
            (
                ("ce_specversion", b"1.0"),
                ("ce_id", b"e"),
                ("ce_source", b"/s"),
                ("ce_type", b"invoice.paid"),
                ("ce_time", b"2017-02-10T03:26:14.5Z"),
            ),
        ),
    ],
)
@pytest.mark.parametrize("thin", [False, True])
def test_type_and_time_of_an_event_come_the_same_way_however_it_was_published(
    record: Rec, thin: bool
) -> None:
    event = decode(record)
    for _ in range(2):
        found = Parsed(build(sub(thin=thin), event, NOW))
        assert found["webhook-event-type"] == "invoice.paid"
        assert found["webhook-event-time"] == "2017-02-10T03:26:14.500Z"
        assert found["webhook-id"] == event.id
    assert Parsed(build(sub(), event, NOW)).body == (record.value or b"")


@given(st.integers(0, 253_402_300_799_999))
def test_the_time_is_what_datetime_makes_of_it(timestamp_ms: int) -> None:
    for thin in (False, True):
        made = build(sub(thin=thin), Event("evt_1", "a.b", None, b"", timestamp_ms, JSON_HEAD), NOW)
        expected = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=timestamp_ms)).isoformat(
            timespec="milliseconds"
        )
        found = Parsed(made)
        assert found["webhook-event-time"] == expected.replace("+00:00", "Z")
        if thin:
            assert json.loads(found.body)["timestamp"] == found["webhook-event-time"]


@pytest.mark.parametrize(
    ("timestamp_ms", "expected"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (999, "1970-01-01T00:00:00.999Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        (-1, None),
        (-(2**63), None),
        (253_402_300_800_000, None),
        (2**63 - 1, None),
    ],
)
def test_a_time_that_nobody_can_write_is_not_told(timestamp_ms: int, expected: str | None) -> None:
    event = Event("evt_1", "a.b", None, b"", timestamp_ms, JSON_HEAD)
    found = Parsed(build(sub(), event, NOW))
    assert dict(found.headers).get("webhook-event-time") == expected
    assert (found["webhook-event-type"], found["webhook-id"]) == ("a.b", "evt_1")


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("com.example/order:created v2", "com.example/order:created%20v2"),
        (" x ", "%20x%20"),
        ("caf\u00e9 100%", "caf%C3%A9%20100%25"),
        ('a%20b"', 'a%20b"'),
        ("\U0001f600", "%F0%9F%98%80"),
    ],
)
def test_ids_and_types_of_cloudevents_are_valid_header_fields_and_what_is_signed(
    text: str, sent: str
) -> None:
    headers = (("type", text.encode()), ("id", text.encode()))
    found = Parsed(build(sub(), decode(Rec(b"{}", headers)), int(time.time())))
    assert (found["webhook-id"], found["webhook-event-type"]) == (sent, sent)
    Webhook(SECRET).verify(found.body, dict(found.headers))
    thin = Parsed(build(sub(thin=True), decode(Rec(b"{}", headers)), NOW))
    assert json.loads(thin.body)["id"] == json.loads(thin.body)["type"] == text


@pytest.mark.parametrize("body", [b"", b"x", b"\0\r\n\r\nGET / HTTP/1.1\r\n\r\n", b"x" * 100_000])
def test_any_body_arrives_as_it_is_and_is_the_whole_of_one_message(body: bytes) -> None:
    found = Parsed(build(sub(), an_event(body), NOW))
    assert (found.method, found.version, found.complete, found.keep_alive) == (b"POST", "1.1", 1, True)
    assert found.body == body
    assert found["content-length"] == str(len(body))


def test_a_receiver_verifies_what_is_sent() -> None:
    body = b'{"type":"a.b","data":{"x":"\xc3\xa9"}}'

    found = Parsed(build(sub(), an_event(body), int(time.time())))
    Webhook(SECRET).verify(found.body, dict(found.headers))


def test_the_timestamp_is_that_of_the_attempt() -> None:
    for now in (NOW, NOW + 1, NOW, 0):
        assert Parsed(build(sub(), an_event(), now))["webhook-timestamp"] == str(now)


@pytest.mark.parametrize(
    ("url", "target", "host"),
    [
        ("https://example.com", "/", "example.com"),
        ("https://example.com?a=1&b=\xe9", "/?a=1&b=%C3%A9", "example.com"),
        ("https://example.com:8443/a/../b", "/a/../b", "example.com:8443"),
        ("https://[2606:4700::1]:8443/x", "/x", "[2606:4700::1]:8443"),
        ("https://b\xfccher.example/", "/", "xn--bcher-kva.example"),
    ],
)
def test_target_and_host_are_the_guards(url: str, target: str, host: str) -> None:
    found = Parsed(build(sub(url), an_event(), NOW))
    assert (found.target, found["host"]) == (target, host)


def test_attributes_and_trace_of_the_event_go_along() -> None:
    event = decode(
        Rec(
            b"data",
            (
                ("ce_specversion", b"1.0"),
                ("ce_id", b"ce-1"),
                ("ce_source", "/caf\u00e9".encode()),
                ("ce_type", b"a.b"),
                ("content-type", b"text/plain"),
                ("traceparent", PARENT),
                ("tracestate", b"a=b"),
            ),
        )
    )
    found = Parsed(build(sub(), event, NOW))
    assert found["content-type"] == "text/plain"
    assert found["ce-source"] == "/caf%C3%A9"
    assert found["webhook-id"] == found["ce-id"] == "ce-1"
    assert (found["traceparent"], found["tracestate"]) == (PARENT.decode(), "a=b")
    assert len(found.names) == len(set(found.names))


def test_a_thin_payload_tells_id_type_and_time_and_is_what_is_signed() -> None:
    event = Event("evt_1", "a.b", "acme", b"secret", 1_700_000_000_123, JSON_HEAD, "2017-02-10T03:26:14Z")
    found = Parsed(build(sub(thin=True), event, NOW))
    assert json.loads(found.body) == {"id": "evt_1", "type": "a.b", "timestamp": "2017-02-10T03:26:14.000Z"}
    assert found["content-type"] == "application/json"
    lines = SIGNERS.header_lines(b"evt_1", b"%d" % NOW, found.body).decode()
    assert f"webhook-signature: {found['webhook-signature']}\r\n" == lines


def test_a_thin_payload_keeps_the_trace_and_nothing_that_describes_the_body_left_out() -> None:
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_id", b"ce-1"),
        ("ce_source", b"/s"),
        ("ce_type", b"a.b"),
        ("content-type", b"text/plain"),
        ("traceparent", PARENT),
        ("tracestate", b"a=b"),
    )
    found = Parsed(build(sub(thin=True), decode(Rec(b"data", headers)), NOW))
    assert found["content-type"] == "application/json"
    assert (found["traceparent"], found["tracestate"]) == (PARENT.decode(), "a=b")
    assert not [name for name in found.names if name.startswith("ce-")]


@pytest.mark.parametrize("timestamp_ms", [-1, -(2**63), 2**63 - 1, 253_402_300_800_000])
def test_a_thin_payload_of_a_record_without_a_usable_time_tells_the_attempts(timestamp_ms: int) -> None:
    event = Event("evt_1", "a.b", None, b"", timestamp_ms, JSON_HEAD)
    found = Parsed(build(sub(thin=True), event, NOW))
    assert json.loads(found.body)["timestamp"] == "2021-02-25T15:02:10.000Z"


def test_github_signatures_are_sent_beside_the_standard_headers() -> None:
    signers = make_signers([SECRET], ["github"])
    made = template(Guard().check_url("https://example.com/"), (), signers, thin=False)
    found = Parsed(build(made, an_event(), NOW))
    assert found["x-hub-signature-256"].startswith("sha256=")
    assert "webhook-signature" not in found.names
    assert found["webhook-id"] == "evt_1"


def test_a_request_can_be_sent_to_another_target_of_the_same_host() -> None:
    request = build(sub(), an_event(b"POST /x HTTP/1.1\r\n"), NOW)
    found = Parsed(retarget(request, "/elsewhere?x=1"))
    assert (found.target, found.body) == ("/elsewhere?x=1", b"POST /x HTTP/1.1\r\n")
    assert found.headers == Parsed(request).headers
    assert Parsed(retarget(request, "http://h.example:81/x")).target == "http://h.example:81/x"
    assert retarget(retarget(request, "/x"), "/webhooks") == request


@pytest.mark.parametrize(
    "target", ["", "x", "/ x", "/x HTTP/1.1\r\nX: y", "/\0", "/\xe9", "ftp://x/", "/x\n"]
)
def test_a_target_that_would_break_the_request_line_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="can't be written"):
        retarget(build(sub(), an_event(), NOW), target)
    with pytest.raises(ValueError, match="can't be written"):
        template(Target(Origin("https", "h", 443), target, "h"), (), SIGNERS, thin=False)


@pytest.mark.parametrize("host", ["", "h\r\nX: y", "h ", "h\0", "\xe9"])
def test_a_host_that_would_break_the_head_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="can't be written"):
        template(Target(Origin("https", "h", 443), "/", host), (), SIGNERS, thin=False)


# The subscription's own headers

FORBIDDEN = [
    *("Host", "host", "HOST", "Content-Length", "content-length", "Content-Type", "Content-Encoding"),
    *(
        "Connection",
        "Keep-Alive",
        "Transfer-Encoding",
        "TE",
        "Trailer",
        "Upgrade",
        "Expect",
        "HTTP2-Settings",
    ),
    *("Proxy-Authorization", "Proxy-Connection", "proxy-x", "User-Agent", "traceparent", "TraceState"),
    *("webhook-id", "Webhook-Timestamp", "WEBHOOK-SIGNATURE", "webhook-anything", "X-Hub-Signature-256"),
    *("ce-id", "CE-Type"),
]
# What gateways, CGI and frameworks fold into ours
FOLDED = [
    *(
        "Webhook_Id",
        "webhook.signature",
        "WEBHOOK_TIMESTAMP",
        "webhook~id",
        "X_Hub_Signature_256",
        "X.Hub-Signature_256",
    ),
    *(
        "ce_id",
        "Content_Length",
        "Transfer_Encoding",
        "transfer.encoding",
        "Content_Type",
        "User_Agent",
        "proxy_authorization",
    ),
]


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_the_dispatcher_sends_or_frames_with_can_not_be_overridden(name: str) -> None:
    with pytest.raises(ValueError, match="set by the dispatcher"):
        check_header(name, "x")
    with pytest.raises(ValueError, match="set by the dispatcher"):
        sub(headers=((name, "x"),))


@pytest.mark.parametrize("name", FOLDED)
def test_what_servers_take_for_ours_is_refused_and_sent_where_it_was_taken_before(name: str) -> None:
    with pytest.raises(ValueError, match=r"set by the dispatcher.*which some servers take"):
        check_header(name, "x")
    check_header(name, "x", folded=False)
    assert f"\r\n{name}: x\r\n".encode() in sub(headers=((name, "x"),)).tail


def test_every_name_the_dispatcher_sends_is_one_that_can_not_be_overridden() -> None:
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_id", b"1"),
        ("ce_source", b"/"),
        ("ce_type", b"a"),
        ("traceparent", PARENT),
        ("tracestate", b"a=b"),
    )
    signers = make_signers([SECRET], ["v1", "github"])
    made = template(Guard().check_url("https://example.com/"), (), signers, thin=False)
    names = Parsed(build(made, decode(Rec(b"", headers)), NOW)).names
    assert len(names) == len(set(names)) == 16
    for name in names:
        with pytest.raises(ValueError, match="set by the dispatcher"):
            check_header(name, "x")


@pytest.mark.parametrize(
    "name",
    ["", " ", "X ", " X", "X:", "X: y", "X\r\nHost", "X\n", "X\0", "X\xe9", "X\t", "(X)", "X/Y", "x" * 129],
)
def test_a_header_name_is_a_token(name: str) -> None:
    with pytest.raises(ValueError, match="header name"):
        check_header(name, "x")


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        " x",
        "x ",
        "x\t",
        "a\r\nHost: evil",
        "a\nb",
        "a\rb",
        "a\0b",
        "\x7f",
        "\xe9",
        "\u2028",
        "\ud800",
        "x\n",
    ],
)
def test_a_header_value_is_visible_ascii_and_is_not_quoted_when_refused(value: str) -> None:
    with pytest.raises(ValueError, match="visible ASCII") as caught:
        check_header("X-Env", value)
    assert not value.strip() or value not in str(caught.value)


def test_a_header_value_has_a_limit() -> None:
    check_header("X-Env", "x" * MAX_OWN_HEADER_VALUE)
    with pytest.raises(ValueError, match="longer"):
        check_header("X-Env", "x" * (MAX_OWN_HEADER_VALUE + 1))


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ("Basic " + b64encode(b"user:pass").decode(), True),
        ("basic " + b64encode(b":").decode(), True),
        ("Basic " + b64encode(b"nocolon").decode(), False),
        ("Basic me:hunter2", False),
        ("Basic", False),
        ("Bearer abc.DEF-_~+/==", True),
        ("bearer abc", True),
        ("Bearer", False),
        ("Bearer a b", False),
        ('Bearer "x"', False),
        ("Digest username=x", False),
        ("abc", False),
    ],
)
def test_authorization_is_basic_or_bearer(value: str, accepted: bool) -> None:
    if accepted:
        check_header("Authorization", value)
    else:
        with pytest.raises(ValueError, match="Authorization") as caught:
            check_header("AUTHORIZATION", value)
        assert "hunter2" not in str(caught.value)


# Attacks: whatever its source, a line break or NUL never gets into the head.

HOSTILE = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            *(
                "a\r\nX-Evil: 1",
                "a\nX-Evil: 1",
                "a\rX-Evil: 1",
                "\0",
                "a\r\n\r\nGET / HTTP/1.1",
                "%0d%0aX-Evil: 1",
            ),
            *("\u010a\u010d", "\u560a\u560d", "a\x0bb", "a\x85b", "a\u2028b", "a b", "\ud800"),
        ]
    ),
)


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def wire_is_safe(raw: bytes, event: Event) -> None:
    head, _, body = raw.partition(b"\r\n\r\n")
    assert body == event.body
    lines = head.split(b"\r\n")
    assert re.fullmatch(rb"POST /[!-~]* HTTP/1\.1", lines[0])
    for line in lines[1:]:
        assert re.fullmatch(rb"[A-Za-z0-9-]+: [\t -~]*", line)
        assert not line.lower().startswith(b"x-evil")
    found = Parsed(raw)
    assert found.complete == 1
    assert len(found.headers) == len(lines) - 1
    assert len(found.names) == len(set(found.names))


@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
def test_no_header_of_a_record_breaks_the_head(a: str, b: str, c: str, d: str, e: str, f: str) -> None:
    one, two, three, four, five, six = map(encoded, (a, b, c, d, e, f))
    records = [
        Rec(b"x", (("type", b"a"), ("id", one))),
        Rec(b"x", (("type", one),)),
        Rec(b"x", (("type", b"a"), ("tenant", two))),
        Rec(b"x", (("type", b"a"), ("content-type", three))),
        Rec(b"x", (("type", b"a"), ("content-type", b"a/b;" + three))),
        Rec(b"x", (("type", b"a"), ("timestamp", four))),
        Rec(b"x", (("type", b"a"), ("traceparent", five), ("tracestate", six))),
        Rec(b"x", (("type", b"a"), ("traceparent", PARENT), ("tracestate", six))),
        Rec(b"x", (("type", b"a"), ("traceparent", b"01" + PARENT[2:] + b"-" + five))),
        Rec(b'{"type":"a"}', (("content-type", b"application/cloudevents+json;" + one),)),
    ]
    base: tuple[tuple[str, bytes | None], ...] = (
        ("ce_specversion", b"1.0"),
        ("ce_id", b"1"),
        ("ce_source", b"/"),
        ("ce_type", b"a"),
    )
    records += [
        Rec(b"x", (*base, (name, value)))
        for name, value in (
            ("ce_specversion", one),
            ("ce_id", two),
            ("ce_source", three),
            ("ce_type", four),
            ("ce_x", five),
            (f"ce_{f}", b"x"),
            ("ce_datacontenttype", six),
            (f, six),
        )
    ]
    for record in records:
        _deliver(record)


@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
def test_no_member_of_a_json_value_breaks_the_head(a: str, b: str, c: str, d: str) -> None:
    for document in (
        {"type": a, "id": "1"},
        {"type": "a", "id": b, "tenant": c, "created": d},
        {"type": "a", "id": "1", "tenant": c, "timestamp": d},
    ):
        _deliver(Rec(encoded(json.dumps(document))))
        cloud = {**document, "specversion": "1.0", "source": d, "time": a}
        _deliver(Rec(encoded(json.dumps(cloud)), (("content-type", b"application/cloudevents+json"),)))


def _deliver(record: Rec) -> None:
    try:
        event = decode(record)
    except InvalidEvent:
        return
    assert valid_id(event.id)
    wire_is_safe(build(sub(), event, NOW), event)
    thin = build(sub(thin=True), event, NOW)
    assert thin.count(b"\r\n\r\n") == 1
    assert Parsed(thin).complete == 1


@given(HOSTILE, HOSTILE, HOSTILE)
def test_nothing_of_a_subscription_breaks_the_head(a: str, b: str, c: str) -> None:
    event = an_event()
    for url in (f"https://{a}.example/", f"https://example.com/{a}?{b}", f"https://example.com{c}", a):
        try:
            target = Guard().check_url(url)
        except Blocked:
            continue
        wire_is_safe(build(template(target, (), SIGNERS, thin=False), event, NOW), event)
    for name, value in ((a, "x"), ("X-Env", b), (f"X-{c}", "x"), ("Authorization", f"Bearer {b}")):
        try:
            subscription = sub(headers=((name, value),))
        except ValueError:
            continue
        found = Parsed(build(subscription, event, NOW))
        assert found.complete == 1
        assert found.headers[-1] == (name, value)
        assert len(found.names) == len(set(found.names)) == 10
