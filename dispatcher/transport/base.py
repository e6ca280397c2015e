"""What the transport carries, and who is told of the result.

The engine's delivery *is* the exchange: the transport keeps no object of its own per request.
"""

from __future__ import annotations

from typing import Protocol

from dispatcher.core.request.results import Result


class Exchange(Protocol):
    """One request and the place where its result goes."""

    request: bytes
    """The whole HTTP/1.1 request as it goes over the wire, head and body. Must not change until `done`."""

    deadline: float
    """Seconds of `loop.time()` by which everything is over: look-up, connect, TLS, send, head and body."""

    def done(self, result: Result) -> None:
        """Take the result. Called exactly once, on the loop, never from inside `Transport.send`.

        The connection that carried the exchange is back in the pool by then, if it is to be
        used again, so a `send` to the same origin from in here goes out on it.
        """
