"""The connections to one origin: which one carries the next exchange.

The engine limits how many exchanges an origin has at a time, so nothing queues here. An idle connection is taken, the one used last first: the
endpoint is the least likely to have given it up, and the others get to expire. Where none is idle, a new one is opened.

Rules:

1. `members` counts connections from their making until they leave. Without members and dials the pool is dropped. A pool that is `dropped`, or
   whose transport is closing, is sent nothing.
2. `idle` gives exactly the connections that carry nothing and may be used. The one used last stands in the pool itself: most of 10,000 hosts
   have one, and a list for it would be two more ways to distant memory.
3. What all pools have in `idle` and in `dials` is counted in `Shared`, so that a scrape need not look at 10,000 pools.
"""

from __future__ import annotations

from collections.abc import Callable

from dispatcher.core.request.urls import Origin
from dispatcher.core.subscription.model import ClientCertificate
from dispatcher.transport.base import Exchange
from dispatcher.transport.connection import Connection, Shared
from dispatcher.transport.dial import Dial, Dialer


class Pool:
    """The connections to one origin (with one client certificate, or none)."""

    __slots__ = (
        "_dialer",
        "_drop",
        "_last",
        "_others",
        "_shared",
        "_spare",
        "certificate",
        "dials",
        "dropped",
        "members",
        "origin",
    )

    def __init__(
        self,
        origin: Origin,
        certificate: ClientCertificate | None,
        shared: Shared,
        dialer: Dialer,
        drop: Callable[[Pool], None],
    ) -> None:
        """`drop` is called when the last member has left."""
        # Fields that every exchange reads come first: compiled, they are side by side in memory.
        self.dropped = False
        self._last: Connection | None = None  # idle, the one used last
        self._spare = 0  # so many besides, in `_others`: nobody need look there who has none
        self._shared = shared
        self._others: list[Connection] = []
        self.members = 0
        self.dials: set[Dial] = set()
        self.origin = origin
        self.certificate = certificate
        self._dialer = dialer
        self._drop = drop

    def send(self, exchange: Exchange) -> None:
        """Carry the exchange."""
        connection = self._last
        if connection is None:
            self.resend(exchange)
            return
        self._take_last()
        connection.start(exchange)

    def _take_last(self) -> None:
        """It is idle no more: the one used before it takes its place."""
        self._shared.idle -= 1
        if self._spare:
            self._spare -= 1
            self._last = self._others.pop()
        else:
            self._last = None

    @property
    def idle(self) -> list[Connection]:
        """Those that carry nothing and may be used, the one used last at the end."""
        return [*self._others] if self._last is None else [*self._others, self._last]

    def returned(self, connection: Connection) -> None:
        """It carries nothing and may be used again."""
        if self._last is not None:
            self._others.append(self._last)
            self._spare += 1
        self._last = connection
        self._shared.idle += 1

    def prefetch(self) -> int:
        """Bring what `send` uses first into the CPU's caches (`delivery/sending.py`)."""
        connection = self._last
        return 0 if connection is None else connection.prefetch()

    def resend(self, exchange: Exchange) -> None:
        """Carry the exchange on a fresh connection."""
        dial = Dial(self._shared, self._dialer, self, exchange)
        self.dials.add(dial)
        self._shared.dials += 1
        dial.start()

    def joined(self) -> None:
        """A connection is being made."""
        self.members += 1

    def left(self, connection: Connection) -> None:
        """A connection has closed, or came to nothing."""
        self.members -= 1
        if connection is self._last:
            self._take_last()
        elif self._spare and connection in self._others:
            self._others.remove(connection)
            self._spare -= 1
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
