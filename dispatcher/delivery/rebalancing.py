"""Partitions that come and go: attempts stop while they move, and nothing is kept of those that went elsewhere.

In come the announcements of both memberships (`membership.py`). Out goes the gate of `sending.py`, closed before partitions are given up and opened
when the new ones are there. This room alone decides when the gate is open.

Rules:

1. While partitions are being reassigned (the gate is closed) no attempt starts, so that few deliveries are
   sent by two members.
2. The gate opens by itself after `_GATE_LIMIT`, should no assignment follow. After `close` it stays closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from dispatcher.core.retry.wheel import Entry
from dispatcher.delivery.membership import Membership
from dispatcher.delivery.outbox import Outbox
from dispatcher.delivery.parking import Parking
from dispatcher.delivery.sending import Sending
from dispatcher.runtime.timers import Callback, Timers

_REVOKE_DRAIN: Final = 3.0  # seconds at the most for attempts under way to end before partitions are given up
# Of that, seconds without any attempt ending: those left are slow, and nobody waits for them.
_REVOKE_PATIENCE: Final = 1.0
_GATE_LIMIT: Final = 10.0  # seconds without attempts at the most, should no assignment follow


class Rebalancing:
    """The host of the memberships (`membership.MembershipHost`)."""

    def __init__(self, sending: Sending, parking: Parking, outbox: Outbox, timers: Timers) -> None:
        self._sending = sending
        self._parking = parking
        self._outbox = outbox
        self._timers = timers
        self._clock = asyncio.get_running_loop().time
        self._told: dict[Membership, Callable[[], None]] = {}
        self._moving: set[Membership] = set()  # whose partitions are being reassigned
        self._gate_limits: dict[Membership, Entry[Callback]] = {}
        self._closed = False  # the drain is over: the gate stays closed

    def tell(self, membership: Membership, assigned: Callable[[], None]) -> None:
        """Call `assigned` whenever the membership has got its partitions, before attempts start."""
        self._told[membership] = assigned

    def close(self) -> None:
        """No attempt starts any more: the process ends."""
        self._closed = True
        self._sending.close_gate()

    @property
    def _unsettled(self) -> int:
        """Deliveries that will be settled before long: attempted, about to be parked, or being written."""
        return self._sending.attempting + len(self._parking) + len(self._outbox)

    async def before_revocation(self, membership: Membership) -> None:
        """Partitions are about to move: let attempts end and what came of them be written, start none.

        A retry that is written after the commit would be a duplicate: the next owner reads its event again.
        """
        self._sending.close_gate()
        self._moving.add(membership)
        now = since = self._clock()
        deadline = now + _REVOKE_DRAIN
        fewest = self._unsettled
        while fewest and now < deadline and now - since < _REVOKE_PATIENCE:
            await asyncio.sleep(0.01)
            now = self._clock()
            left = self._unsettled
            if left < fewest:
                fewest = left
                since = now

    async def after_revocation(self, membership: Membership) -> None:
        """Should no assignment follow soon (the broker went away), deliveries go on without."""
        limit = self._gate_limits.pop(membership, None)
        if limit is not None:
            self._timers.cancel(limit)
        self._gate_limits[membership] = self._timers.at(
            self._clock() + _GATE_LIMIT, partial(self._open_gate, membership)
        )

    def after_assignment(self, membership: Membership) -> None:
        """Forget what waited for partitions that are somebody else's now."""
        self._sending.forget_lost()
        self._told[membership]()
        self._open_gate(membership)

    def _open_gate(self, membership: Membership) -> None:
        self._moving.discard(membership)
        limit = self._gate_limits.pop(membership, None)
        if limit is not None:
            self._timers.cancel(limit)
        if not (self._sending.gate or self._moving or self._closed):
            self._sending.open_gate()
