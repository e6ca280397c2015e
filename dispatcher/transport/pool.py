"""The connections to one origin: which one carries the next exchange.

The engine limits how many exchanges an origin has at a time, so there is nothing to queue for: an
idle connection is taken, the one used last first (it is the least likely to have been given up by
the endpoint, and those at the bottom get to expire), or a new one is opened.

Rules:

1. `members` counts connections from their making until they leave. Without members and dials the
   pool is dropped. One that is `dropped`, or whose transport is closing, is sent nothing any more.
2. `idle` holds exactly the connections that carry nothing and may be used.
3. What all pools have in `idle` and in `dials` is counted in `Shared`: a scrape need not look at 10,000 pools.
"""

from __future__ import annotations

from collections.abc import Callable

from dispatcher.core.netguard import Origin
from dispatcher.core.subscriptions import ClientCertificate
from dispatcher.transport.base import Exchange
from dispatcher.transport.connection import Connection, Shared
from dispatcher.transport.dial import Dial, Route


class Pool:
    """The connections to one origin (with one client certificate, or none)."""

    __slots__ = ("_drop", "_route", "_shared", "certificate", "dials", "dropped", "idle", "members", "origin")

    def __init__(
        self,
        origin: Origin,
        certificate: ClientCertificate | None,
        shared: Shared,
        route: Route,
        drop: Callable[[Pool], None],
    ) -> None:
        """`drop` is called when the last member has left."""
        self.origin = origin
        self.certificate = certificate
        self._shared = shared
        self._route = route
        self._drop = drop
        self.idle: list[Connection] = []
        self.dials: set[Dial] = set()
        self.members = 0
        self.dropped = False

    def send(self, exchange: Exchange) -> None:
        """Carry the exchange."""
        if self.idle:
            self._shared.idle -= 1
            self.idle.pop().start(exchange)
        else:
            self.resend(exchange)

    def prefetch(self) -> int:
        """Bring what `send` uses first into the CPU's caches (`deliveries.py`)."""
        return self.idle[-1].prefetch() if self.idle else 0

    def resend(self, exchange: Exchange) -> None:
        """Carry the exchange on a fresh connection."""
        dial = Dial(self._shared, self._route, self, exchange)
        self.dials.add(dial)
        self._shared.dials += 1
        dial.start()

    def joined(self) -> None:
        """A connection is being made."""
        self.members += 1

    def left(self, connection: Connection) -> None:
        """A connection has closed, or came to nothing."""
        self.members -= 1
        if connection.exchange is None and connection in self.idle:
            self.idle.remove(connection)
            self._shared.idle -= 1
        self._drop_if_empty()

    def dialed(self, dial: Dial) -> None:
        """A dial is over; the connection that it may have brought is a member."""
        if dial in self.dials:
            self.dials.remove(dial)
            self._shared.dials -= 1
        self._drop_if_empty()

    def _drop_if_empty(self) -> None:
        if not self.members and not self.dials:
            self._drop(self)
