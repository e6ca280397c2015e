"""A connection without a socket or a loop: bytes in, results out. For property tests and the fuzzer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from dispatcher.core.request.results import Failure, Result
from dispatcher.core.retry.wheel import Entry
from dispatcher.transport.connection import Connection, Shared

REQUEST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
CAP = 4096


class Wire:
    """The transport under a connection, its loop, its timers and its pool, all in one."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sent = b""
        self.closed = False
        self.unsent = 0
        self.told: list[Result] = []
        self.resent = 0
        self.gone = 0
        self.failures: list[Failure] = []
        self.idle: list[Connection] = []
        self.request = REQUEST
        self.deadline = 10.0
        self.timer: Callable[[], None] | None = None
        self.due = 0.0
        self.soon: list[Callable[[], None]] = []
        self.shared = Shared(
            cast("Any", self),
            cast("Any", self),
            response_cap=CAP,
            idle_timeout=60.0,
            max_age=600.0,
            max_requests=1000,
        )
        self.connection = Connection(self.shared, self, self)
        self.connection.connection_made(cast("Any", self))

    # The loop's part

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., None], *arguments: object) -> None:
        self.soon.append(partial(callback, *arguments))

    # The timers'

    def at(self, due: float, callback: Callable[[], None]) -> Entry[Callable[[], None]]:
        self.timer, self.due = callback, due
        return Entry(0, callback)

    def cancel(self, entry: object) -> None:
        self.timer = None

    # The transport's

    def write(self, data: bytes) -> None:
        self.sent += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def close(self) -> None:
        self.closed = True

    abort = close

    # The dial's

    tenant: object = None
    endpoint: object = None

    def made(self, connection: Connection) -> None:
        connection.use(self)

    def secured(self, connection: Connection) -> None:
        raise AssertionError

    def failed(self, connection: Connection, failure: Failure) -> None:
        self.failures.append(failure)

    # The pool's

    def returned(self, connection: Connection) -> None:
        self.idle.append(connection)

    def left(self, connection: Connection) -> None:
        self.gone += 1
        if connection in self.idle:
            self.idle.remove(connection)

    def resend(self, exchange: object) -> None:
        self.resent += 1

    # The exchange's

    def done(self, result: Result) -> None:
        self.told.append(result)

    # What a test does

    def receive(self, *chunks: bytes) -> None:
        """What the loop does with bytes that come."""
        for chunk in chunks:
            if not self.closed and chunk:
                self.connection.data_received(chunk)

    def end(self, error: Exception | None = None) -> None:
        """What the loop does at the end of the socket."""
        if error is None and not self.closed:
            self.connection.eof_received()
        self.closed = True
        self.connection.connection_lost(error)

    def again(self) -> None:
        """Send another exchange over the connection."""
        self.idle.pop().start(self)
        self.turn()

    def turn(self) -> None:
        """What the loop does at the end of its turn."""
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()

    def wait(self, seconds: float) -> None:
        """Let so much time pass, with what comes due in it."""
        end = self.now + seconds
        while self.timer is not None and self.due <= end:
            self.now = self.due
            timer, self.timer = self.timer, None
            timer()
        self.now = end
