"""Tells of events that no subscription wants, since nothing else of them is left to be found.

The first event of each tenant and type is a line at level `info`; every one is a line at level `debug`. Producers choose
types and tenants, so the memory of what has been told is bounded. Further ones are counted, and told of together.

Rules:

1. At most REMEMBERED pairs of a tenant and a type are remembered, and each is told of once at `info`.
2. What comes beyond them is one line in SUMMARY_EVERY seconds, with how many events there were.
3. The dispatcher's own events are told of at `debug` only: nobody has to want them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from dispatcher.core.event.decode import RESERVED, Event

log = structlog.get_logger(__name__)

REMEMBERED: Final = 1000
SUMMARY_EVERY: Final = 600.0


class Unmatched:
    """Told of each event that is for nobody."""

    __slots__ = ("_clock", "_debug", "_others", "_summary_at", "_told")

    def __init__(self, clock: Callable[[], float], *, debug: bool) -> None:
        """`debug`: whether lines of that level are written; otherwise making them would be for nothing."""
        self._clock = clock
        self._debug = debug
        self._told: set[tuple[str | None, str]] = set()
        self._others = 0  # events beyond the pairs that are remembered, since the last line about such
        self._summary_at = 0.0

    def note(self, event: Event) -> None:
        """It is for nobody."""
        if self._debug:
            log.debug(
                "no subscription wants this event", event_id=event.id, tenant=event.tenant, type=event.type
            )
        pair = (event.tenant, event.type)
        if pair in self._told or event.type.startswith(RESERVED):
            return
        if len(self._told) < REMEMBERED:
            self._told.add(pair)
            log.info(
                "no subscription wants events of this tenant and type",
                tenant=event.tenant,
                type=event.type,
                event_id=event.id,
                hint=_hint(event),
            )
            return
        self._others += 1
        now = self._clock()
        if now >= self._summary_at:
            log.info(
                "no subscription wants events of further tenants and types",
                events=self._others,
                tenant=event.tenant,
                type=event.type,
                hint="log.level: debug names every one; events_unmatched_total counts them",
            )
            self._others = 0
            self._summary_at = now + SUMMARY_EVERY


def _hint(event: Event) -> str:
    if event.tenant is None:
        return "said once; compare event_types of the subscriptions, and their tenant: this event has none"
    return (
        "said once; compare event_types of the subscriptions, and their tenant: only one with this tenant, or with "
        '"*", gets the event; one without a tenant gets events without a tenant'
    )
