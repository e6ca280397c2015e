"""What is read of the heads of responses, beyond their syntax."""

from __future__ import annotations

from dispatcher.core.request.results import Response
from dispatcher.transport.heads import keep_alive
from tests.zoo.wire import Wire


def test_fields_of_interest_are_read_from_any_response() -> None:
    wire = Wire()
    wire.receive(b"HTTP/1.1 204 X\r\n\r\n")
    wire.again()
    wire.told.clear()
    wire.receive(
        b"HTTP/1.1 103 Hint\r\nLocation: /hint\r\n\r\n"
        b"HTTP/1.1 302 Found\r\nLOCATION:  /caf\xe9 \r\nlocation: /second\r\nretry-AFTER: 120\r\nContent-Length: 0\r\n\r\n"
    )
    assert wire.told == [Response(302, "120", "/caf\xe9", b"")]


def test_keep_alive_grants_are_read() -> None:
    assert keep_alive(b"timeout=5, max=100") == (4.0, 100)
    assert keep_alive(b"TIMEOUT=1") == (0.5, None)
    assert keep_alive(b'max=3;timeout = "30"') == (29.0, 3)
    assert keep_alive(b"timeout=0") == (0.0, None)
    assert keep_alive(b"xtimeout=9, timeout=-4, max=") == (float("inf"), None)
