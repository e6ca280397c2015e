"""What is no request is answered by us, over real connections."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from dispatcher.api import frame, protocol
from dispatcher.api.limits import MAX_FIELD, MAX_LINE, ApiLimits
from tests.api.serving import KEY, URN, serving
from tests.api.test_admission import HEALTH, Raw, Stream, raw

MARK = b"s3cret"  # in whatever is sent: no answer may have it
HOST = b"Host: a\r\n"


async def answered(api: Raw, sent: bytes) -> tuple[Stream, int, dict[str, str], dict[str, object]]:
    """The connection, status, header fields and document of the answer."""
    stream = await api.connect()
    stream[1].write(sent)
    head = (await api.head(stream)).decode()
    first, *lines = head.strip().split("\r\n")
    fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = await stream[0].readexactly(int(fields["content-length"]))
    assert MARK not in head.encode() + body
    return stream, int(first.split()[1]), fields, orjson.loads(body)


@pytest.mark.parametrize(
    ("sent", "status", "kind", "said"),
    [
        (
            b"GET /" + MARK + b"x" * MAX_LINE + b" HTTP/1.1\r\n" + HOST + b"\r\n",
            414,
            "address-too-long",
            f"{MAX_LINE} bytes",
        ),
        (b"GET /?" + MARK + b"x" * MAX_LINE, 414, "address-too-long", "its query too"),
        (
            b"GET / HTTP/1.1\r\n" + HOST + b"X-A: " + MARK + b"x" * MAX_FIELD + b"\r\n\r\n",
            431,
            "fields-too-large",
            f"{MAX_FIELD} bytes",
        ),
        (
            b"GET / HTTP/1.1\r\n" + HOST + (MARK + b": 1\r\n") * 200 + b"\r\n",
            431,
            "fields-too-large",
            "128 header fields",
        ),
        (
            b"GET / HTTP/1.1\r\n" + HOST + b"Bad " + MARK + b"\r\n\r\n",
            400,
            "malformed",
            "Invalid header token",
        ),
        (MARK + b" / HTTP/1.1\r\n\r\n", 400, "malformed", "a method of HTTP"),
        (b"\x16\x03\x01" + MARK + b"\r\n\r\n", 400, "malformed", "TLS is not spoken here"),
        (b"GET /" + MARK + b" HTTP/9.9\r\n" + HOST + b"\r\n", 400, "malformed", "send HTTP/1.1"),
        (b"GET /" + MARK + b" HTTP/2.0\r\n" + HOST + b"\r\n", 400, "malformed", "send HTTP/1.1"),
        (b"GET /" + MARK + b"\r\n\r\n", 400, "malformed", "send HTTP/1.1"),
        (b"GET http://[" + MARK + b" HTTP/1.1\r\n" + HOST + b"\r\n", 400, "malformed", "the address"),
        (b"GET /" + MARK + b" HTTP/1.1\r\n\r\n", 400, "malformed", "Host is missing"),
        (
            b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1" + MARK + b"\r\n\r\n",
            400,
            "malformed",
            "Content-Length",
        ),
        (
            b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + MARK + b"\r\n",
            400,
            "malformed",
            "chunk size",
        ),
        (
            b"GET / HTTP/1.1\r\n" + HOST + b"Expect: " + MARK + b"\r\n\r\n",
            400,
            "malformed",
            "100-continue",
        ),
    ],
)
async def test_what_is_no_request_is_answered_with_a_problem_that_quotes_nothing_and_the_connection_closes(
    sent: bytes, status: int, kind: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw(ApiLimits()) as api:
        (reader, _), got, fields, document = await answered(api, sent)
        assert (got, fields["content-type"]) == (status, "application/problem+json")
        assert (document["type"], document["status"]) == (URN + kind, status)
        assert said in str(document["detail"])
        assert document["request_id"] == fields["x-request-id"]
        assert fields["server"].startswith("dispatcher/")
        assert await reader.read() == b""
    assert not [record for record in caplog.records if record.exc_info]


async def test_what_is_no_request_is_counted_and_what_is_one_is_not() -> None:
    async with raw(ApiLimits()) as api:
        for _ in range(3):
            await answered(api, b"no HTTP\r\n\r\n")
        assert api.server.refused["malformed"] == 3
        await answered(api, HEALTH)
        await answered(api, b"GET /nothing HTTP/1.1\r\n" + HOST + b"\r\n")
        assert api.server.refused["malformed"] == 3
        assert api.server.refused["slow_head"] == 0


async def test_what_is_no_request_after_one_that_is_gets_its_answer_too() -> None:
    async with raw(ApiLimits()) as api:
        stream = await api.connect()
        assert (await api.ask(stream)).startswith(b"HTTP/1.1 200 ")
        assert b" 400 " in (await api.ask(stream, b"no HTTP\r\n\r\n")).split(b"\r\n")[0]
        assert await stream[0].read() == b""


async def test_a_caller_who_is_still_sending_reads_the_answer_and_no_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "LINGER", 60.0)  # however busy the machine is
    async with raw(ApiLimits()) as api:
        reader, writer = await api.connect()
        # More than the sockets hold: it comes while the answer goes.
        writer.write(b"GET / HTTP/1.1\r\n" + HOST + b"X-A: a\r\n" * 100_000)
        async with asyncio.timeout(30):
            await writer.drain()
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.0 431 ")
        assert orjson.loads(answer.partition(b"\r\n\r\n")[2])["status"] == 431


async def forever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 1000)
        await writer.drain()


@pytest.mark.parametrize(("linger", "passed_over"), [(0.01, 1 << 40), (3600.0, 1000)], ids=["time", "bytes"])
async def test_a_caller_who_goes_on_for_ever_is_cut_off(
    linger: float, passed_over: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LINGER", linger)
    monkeypatch.setattr(protocol, "_PASSED_OVER", passed_over)
    async with raw(ApiLimits()) as api:
        (reader, writer), *_ = await answered(api, b"no HTTP\r\n\r\n")
        assert await reader.read() == b""
        async with asyncio.timeout(30):
            with pytest.raises(ConnectionError):
                await forever(writer)


async def test_what_fails_before_the_way_of_requests_is_told_as_a_bug(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(frame, "tag", broken)
    async with serving(KEY) as (call, _):
        answer = await call("GET", "/v1/subscriptions")
    assert (answer.status, answer.headers["Content-Type"]) == (500, "application/problem+json")
    assert answer.json["type"] == URN + "internal"
    assert answer.json["request_id"] == answer.headers["X-Request-Id"]
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["broken"]
