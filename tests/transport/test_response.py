"""What is read of responses."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from dispatcher.core.request.results import Failure, Response
from dispatcher.transport import response
from tests.transport.test_connection import PLAIN, TALK, _outcome
from tests.zoo.wire import CAP, Wire


@given(TALK, st.integers(1, 60_000))
@settings(max_examples=300)
def test_chunking_changes_nothing(chunks: list[bytes], step: int) -> None:
    data = b"".join(chunks)
    whole, pieces = Wire(), Wire()
    whole.receive(data)
    pieces.receive(*(data[start : start + step] for start in range(0, len(data), step)))
    if whole.told and pieces.told:
        first, second = whole.told[0], pieces.told[0]
        if isinstance(first, Response) and isinstance(second, Response):
            assert first.status == second.status
            assert first.retry_after == second.retry_after
            # What ends by a cap or by garbage ends where it shows, so one may have seen more of the body.
            assert first.body.startswith(second.body) or second.body.startswith(first.body)
        else:
            assert isinstance(first, Failure)
            assert isinstance(second, Failure)
            assert first.reason is second.reason
    for wire in (whole, pieces):
        wire.end()
        assert len(wire.told) == 1


@given(PLAIN | TALK.map(b"".join), st.binary(max_size=4))
@settings(max_examples=500)
def test_a_response_in_one_piece_means_the_same_to_the_parser_of_all_and_to_one_of_its_own(
    raw: bytes, more: bytes
) -> None:
    one, other = Wire(), Wire()
    other.connection._reader = response.ResponseReader(CAP)
    for wire in (one, other):
        wire.receive(raw + more)
    assert _outcome(one) == _outcome(other)
    for wire in (one, other):
        wire.end()
    assert _outcome(one) == _outcome(other)


def test_only_small_answers_after_which_all_goes_on_are_kept() -> None:
    wire = Wire()
    wire.receive(b"HTTP/1.1 204 No\r\n\r\n")
    for answer in (
        b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: %b\r\nContent-Length: 0\r\n\r\n" % (b"x" * 1024),
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    ):
        wire.again()
        wire.receive(answer)
    assert wire.closed
    assert wire.shared.whole.known == {}
