"""The response side of a connection, without sockets: arbitrary bytes, arbitrary chunking."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import example, given, settings, strategies as st

from dispatcher.core.request.results import Failure, Reason, Response
from dispatcher.transport import response
from dispatcher.transport.limits import KEPT_BODY, KNOWN_RESPONSES, MAX_HEAD
from tests.zoo.wire import CAP, Wire

PIECES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Go\r\n\r\n",
        b"HTTP/1.1 103 Early\r\n",
        b"HTTP/1.1 204 No\r\n\r\n",
        b"HTTP/1.1 205 No\r\n\r\n",
        b"HTTP/1.0 500 No\n",
        b"HTTP/1.1 429 Slow\r\nRetry-After: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 99999\r\n",
        b"Content-Length: 5\r\ncontent-length : 5\r\n",
        b"X : y\r\n",
        b"X-\xe9: y\r\n",
        b"RTSP/1.0 200 OK\r\n",
        b"HTTP/1.1 600 Why\r\n",
        b"HTTP/1.1 099 Why\r\n",
        b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade\r\nUpgrade: x\r\n",
        b"Keep-Alive: timeout=5, max=1\r\n",
        b"X: y\r\n" * 30,
        b"X: y\n z\n",
        b"\r\n",
        b"\n",
        b"hello",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"0\r\nX: y\r\n",
        b"x" * (CAP + 1),
        b"x" * MAX_HEAD,
        b"\x00",
    ]
)
TALK = st.lists(PIECES | st.binary(max_size=40), max_size=12)


def check(wire: Wire) -> None:
    """What always holds."""
    assert len(wire.told) <= 1
    assert not wire.failures
    for result in wire.told:
        if isinstance(result, Response):
            assert 200 <= result.status <= 999
            assert len(result.body) <= KEPT_BODY
        else:
            assert result.reason in {Reason.PROTOCOL_ERROR, Reason.RESPONSE_TOO_LARGE, Reason.CLOSED}
    if wire.idle:
        assert wire.told
        assert not wire.closed
        assert isinstance(wire.told[0], Response)
    elif wire.told:
        assert wire.closed
        assert wire.gone == 1


@given(TALK)
@settings(max_examples=600)
@example([b"HTTP/1.1 101 Go\r\n\r\n", b"x" * MAX_HEAD])
@example([b"HTTP/1.1 200 OK\r\n", b"x" * MAX_HEAD * 2])
@example([b"HTTP/1.1 100 Continue\r\n\r\n" * 40])
@example([b"HTTP/1.1 100 Continue\n\n" * 40])
def test_whatever_comes_gives_one_result_at_the_latest_at_the_end(chunks: list[bytes]) -> None:
    wire = Wire()
    for chunk in chunks:
        wire.receive(chunk)
        check(wire)
    idle = bool(wire.idle)
    wire.end()
    assert len(wire.told) == 1
    assert wire.resent == 0
    assert wire.shared.opened == wire.shared.closed == 1
    assert wire.gone == 1
    assert wire.timer is None
    if not idle:
        check(wire)


@st.composite
def valid_responses(draw: st.DrawFn) -> tuple[bytes, int, bytes]:
    """Bytes, status and body of a response that leaves the connection in order."""
    # 408 and 410 on a used connection are asked again on a fresh one.
    status = draw(st.integers(200, 599).filter(lambda status: status not in {204, 205, 304, 408, 410}))
    body = draw(st.binary(max_size=CAP))
    names = st.sampled_from([b"Server", b"Date", b"X-Request-Id", b"content-type", b"Set-Cookie"])
    values = st.binary(max_size=20).map(lambda raw: bytes(0x21 + byte % 94 for byte in raw))
    fields = b"".join(b"%b: %b\r\n" % field for field in draw(st.lists(st.tuples(names, values), max_size=8)))
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * draw(st.integers(0, 3))
    head = b"%bHTTP/1.1 %d Reason\r\n%b" % (interim, status, fields)
    if draw(st.booleans()):
        return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body), status, body
    size = draw(st.integers(1, max(1, len(body))))
    chunks = [body[start : start + size] for start in range(0, min(len(body), 64 * size), size)]
    body = b"".join(chunks)
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    trailer = draw(st.sampled_from([b"", b"X-Sum: 1\r\n", b"Retry-After: 9\r\n"]))
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n" + trailer + b"\r\n", status, body


@given(st.lists(valid_responses(), min_size=1, max_size=3), st.data())
@settings(max_examples=300)
def test_valid_responses_are_read_however_they_are_cut_and_keep_the_connection(
    responses: list[tuple[bytes, int, bytes]], data: st.DataObject
) -> None:
    wire = Wire()
    for raw, status, body in responses:
        cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=20)))
        wire.receive(*(raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)))
        assert wire.told == [Response(status, None, None, body[:KEPT_BODY])]
        told = wire.told[0]
        assert isinstance(told, Response)
        assert (told.size or len(told.body)) == len(body)
        assert len(wire.idle) == 1
        wire.told.clear()
        wire.again()
    assert wire.sent == wire.request * (len(responses) + 1)
    assert wire.gone == 0


PLAIN = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 204 No\r\n\r\n",
        b"HTTP/1.1 500 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ]
)


def _outcome(wire: Wire) -> tuple[object, ...]:
    return wire.told, bool(wire.idle), wire.closed, wire.resent


class _Forgetful(dict[bytes, Response]):
    """Keeps no answer."""

    def __setitem__(self, data: bytes, response: Response) -> None:
        pass


@given(st.lists(st.tuples(st.integers(0, 3), PLAIN | PIECES | st.binary(max_size=9)), max_size=30))
@settings(max_examples=500)
@example([(0, b"HTTP/1.1 204 No\r\n"), (1, b"\r\n")])
@example([(0, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), (1, b"hello")])
@example([(0, b"HTTP/1.1 204 No\r\n\r\nHTTP/1.1 204 No\r\n"), (1, b"\r\n")])
@example([(0, b"HTTP/1.1 103 Early\r\n\r\n"), (1, b"HTTP/1.1 204 No\r\n\r\n")])
@example([(0, b"HTTP/1.1 204 No\r\n\r\n"), (1, b"HTTP/1.1 204 No\r\n"), (1, b"\r\n")] * 4)
@example(
    [
        (0, b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
        (1, b"HTTP/1.1 204 No\r\n\r\n"),
    ]
    * 4
)
def test_nothing_that_one_connection_receives_changes_what_another_one_reads(
    talk: list[tuple[int, bytes]],
) -> None:
    together, alone = [Wire() for _ in range(4)], [Wire() for _ in range(4)]
    for wire in together:
        wire.shared.whole = together[0].shared.whole
    for wire in alone:
        wire.shared.whole.known = _Forgetful()
    for number, chunk in talk:
        for wires in (together, alone):
            wire = wires[number]
            wire.receive(chunk)
            if wire.idle:
                wire.again()
        assert _outcome(together[number]) == _outcome(alone[number])


def test_an_answer_that_is_known_to_the_byte_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    wire, other = Wire(), Wire()
    other.shared.whole = whole = wire.shared.whole
    read: list[bytes] = []
    parse = response.WholeReader.read

    def counted(self: response.WholeReader, data: bytes) -> bool:
        read.append(data)
        return parse(self, data)

    monkeypatch.setattr(response.WholeReader, "read", counted)
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n%02d" % number for number in range(3)]
    for _ in range(5):
        for each in (wire, other):
            for answer in answers:
                each.receive(answer)
                each.again()
    # The first one of each connection is looked at more closely, and not kept.
    assert read == [*answers, answers[0], answers[0]]
    assert wire.told == other.told == [Response(200, body=b"%02d" % number) for number in range(3)] * 5
    # What follows an answer, ends before it, or says that it is the last: nothing of that is what is known.
    wire.receive(answers[0] + b"x")
    assert wire.closed
    assert wire.told[-1] == Response(200, body=b"00")
    for number in range(1000):
        other.receive(b"HTTP/1.1 200 OK\r\nX: %d\r\nContent-Length: 0\r\n\r\n" % number)
        if other.closed:
            break
        other.again()
    assert other.closed, "after so many requests, known answers or not"
    assert len(other.told) == 1000
    assert 0 < len(whole.known) <= KNOWN_RESPONSES


def test_an_unsent_rest_of_the_request_closes_the_connection() -> None:
    wire = Wire()
    wire.unsent = 1
    wire.receive(b"HTTP/1.1 204 X\r\n\r\n")
    assert wire.told == [Response(204)]
    assert wire.closed
    assert not wire.idle


def test_a_reused_connection_hands_its_exchange_back_when_it_ends_before_the_first_byte() -> None:
    for error in (None, ConnectionResetError("reset")):
        wire = Wire()
        wire.receive(b"HTTP/1.1 204 X\r\n\r\n")
        wire.again()
        wire.told.clear()
        wire.end(error)
        assert (wire.resent, wire.told) == (1, [])


def test_a_reused_connection_that_ends_after_the_first_byte_is_a_failure() -> None:
    wire = Wire()
    wire.receive(b"HTTP/1.1 204 X\r\n\r\n")
    wire.again()
    wire.told.clear()
    wire.receive(b"H")
    wire.end()
    assert wire.resent == 0
    assert isinstance(wire.told[0], Failure)
    assert wire.told[0].reason is Reason.CLOSED


def test_an_exchange_may_send_the_next_one_from_inside_done() -> None:
    wire = Wire()
    in_pool = []

    def done(result: object) -> None:
        in_pool.append(len(wire.idle))
        wire.again()

    wire.done = done  # type: ignore[method-assign]
    for _ in range(900):
        wire.receive(b"HTTP/1.1 204 X\r\n\r\n")
    assert in_pool == [1] * 900
    assert wire.sent == wire.request * 901


def test_a_done_that_raises_takes_nothing_with_it() -> None:
    wire = Wire()

    def done(result: object) -> None:
        raise RuntimeError("the engine's mistake")

    wire.done = done  # type: ignore[method-assign]
    wire.receive(b"HTTP/1.1 204 X\r\n\r\n")
    assert len(wire.idle) == 1


def test_one_timer_serves_deadline_idle_expiry_and_age() -> None:
    wire = Wire()
    first = wire.timer
    assert first is not None
    wire.receive(b"HTTP/1.1 204 X\r\n\r\n")
    wire.now, wire.deadline = 5.0, 15.0
    wire.again()
    assert [wire.timer] == [first]  # nothing was armed for the second exchange
    wire.now = 10.0
    first()
    assert len(wire.told) == 1  # its deadline is later: it goes on
    wire.now = 15.0
    assert wire.timer is not None
    wire.timer()
    result = wire.told[1]
    assert isinstance(result, Failure)
    assert result.reason is Reason.TIMEOUT
    assert wire.closed

    wire = Wire()
    wire.receive(b"HTTP/1.1 204 X\r\n\r\n")
    wire.now = 10.0
    assert wire.timer is not None
    wire.timer()
    assert len(wire.idle) == 1
    wire.now = 60.0
    wire.timer()
    assert len(wire.idle) == 0
    assert wire.closed


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def _reused() -> Wire:
    """A connection that has completed a response, and was given another exchange in this turn."""
    wire = Wire()
    wire.receive(ANSWER)
    wire.sent = b""
    wire.told.clear()
    wire.idle.pop().start(wire)
    return wire


def test_what_is_sent_on_a_reused_connection_is_written_once_at_the_end_of_the_turn() -> None:
    wire = _reused()
    assert wire.sent == b""
    wire.turn()
    assert wire.sent == wire.request
    wire.turn()
    assert wire.sent == wire.request
    wire.receive(ANSWER)
    assert wire.told == [Response(200)]
    assert wire.idle == [wire.connection]


def test_bytes_that_come_before_the_request_was_written_are_no_answer_to_it() -> None:
    wire = _reused()
    wire.receive(ANSWER)
    assert wire.told == []
    assert wire.resent == 1
    assert wire.closed
    wire.turn()
    assert wire.sent == b""


def test_an_end_before_the_request_was_written_hands_the_exchange_back() -> None:
    wire = _reused()
    wire.end()
    wire.turn()
    assert wire.sent == b""
    assert wire.told == []
    assert wire.resent == 1


def test_what_was_given_up_before_it_was_written_is_never_sent() -> None:
    wire = _reused()
    wire.connection.cancel("enough")
    wire.turn()
    assert wire.sent == b""
    assert wire.told == [Failure(Reason.CANCELLED, "enough")]


def test_a_write_that_fails_keeps_no_other_request_back(monkeypatch: pytest.MonkeyPatch) -> None:
    broken, other = _reused(), _reused()
    other.connection._shared = broken.shared
    broken.shared.write_soon(other.connection)

    def write(_: bytes) -> None:
        raise RuntimeError("unable to perform operation on a closed transport")

    monkeypatch.setattr(broken, "write", write)
    broken.turn()
    broken.turn()  # its end is told in the next turn, so never from inside somebody's `send`
    assert broken.resent == 1
    assert other.sent == other.request


def test_many_requests_of_one_turn_are_written_some_at_a_time() -> None:
    wires = [_reused() for _ in range(40)]
    shared = wires[0].shared
    for wire in wires:
        wire.connection._shared = shared
        shared.write_soon(wire.connection)
    written = [wire.sent == wire.request for wire in wires]
    assert any(written)
    assert not all(written)
    wires[0].turn()
    assert all(wire.sent == wire.request for wire in wires)


def test_an_echo_of_the_request_is_not_shown_since_it_holds_secrets() -> None:
    wire = Wire()
    wire.request = b"POST /hooks/s3cret HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    wire.connection._exchange = wire
    wire.receive(wire.request)
    [result] = wire.told
    assert isinstance(result, Failure)
    assert result.reason is Reason.PROTOCOL_ERROR
    assert "our own request" in result.detail
    assert "s3cret" not in result.detail


def test_a_compressed_body_is_kept_as_it_came() -> None:
    """A bomb of a gigabyte is a megabyte here: nothing undoes what an endpoint has compressed."""
    bomb = zlib.compress(bytes(1 << 20))
    for encoding in (b"gzip", b"deflate", b"br", b"zstd"):
        wire = Wire()
        wire.receive(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (encoding, len(bomb), bomb)
        )
        (result,) = wire.told
        assert isinstance(result, Response)
        assert result.body == bomb[:KEPT_BODY]


# -- Time

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def test_an_idle_connection_expires_after_the_idle_timeout() -> None:
    wire = Wire()
    wire.receive(ANSWER)
    wire.wait(59.9)
    assert wire.idle
    wire.wait(0.2)
    assert wire.closed
    assert wire.gone == 1


def test_a_connection_is_used_until_its_age_and_no_longer() -> None:
    wire = Wire()
    wire.deadline = 10_000.0
    wire.receive(ANSWER)
    for _ in range(14):
        wire.wait(40.0)
        wire.again()
        wire.receive(ANSWER)
    wire.wait(39.0)  # 599 s of 600
    assert wire.idle
    wire.wait(1.1)
    assert wire.closed
    assert wire.gone == 1


def test_a_connection_past_its_age_brings_its_response_and_goes() -> None:
    wire = Wire()
    wire.deadline = 10_000.0
    wire.receive(ANSWER)
    wire.wait(30.0)
    wire.again()
    wire.wait(700.0)
    wire.receive(ANSWER)
    assert len(wire.told) == 2
    wire.wait(0.0)
    assert wire.closed


@pytest.mark.parametrize(("granted", "seconds"), [(b"5", 4.0), (b"1", 0.5), (b"1000", 60.0)])
def test_what_keep_alive_grants_is_kept_to(granted: bytes, seconds: float) -> None:
    wire = Wire()
    wire.receive(b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=%b\r\nContent-Length: 0\r\n\r\n" % granted)
    for _ in range(3):
        wire.wait(seconds - 0.1)
        assert wire.idle, "each response begins the time anew"
        wire.deadline = wire.now + 10
        wire.again()
        wire.receive(ANSWER)
    wire.wait(seconds + 0.1)
    assert wire.closed


def test_a_keep_alive_of_no_time_closes_at_once() -> None:
    wire = Wire()
    wire.receive(b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=0\r\nContent-Length: 0\r\n\r\n")
    assert wire.told
    assert wire.closed


@pytest.mark.parametrize(
    ("came", "where"),
    [
        (b"", "before a response came"),
        (b"HTTP/1.1 2", "in the response head"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", "in the response body (status 200)"),
    ],
)
def test_the_deadline_says_how_far_the_response_was(came: bytes, where: str) -> None:
    wire = Wire()
    wire.receive(came)
    wire.wait(9.9)
    assert wire.told == []
    wire.wait(0.2)
    (failure,) = wire.told
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.TIMEOUT
    assert failure.detail == f"the deadline passed {where}"
    assert wire.closed
