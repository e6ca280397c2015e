"""Reading an event again where it was published.

Offsets are no names. A topic that was deleted and made anew has somebody else's record at an old offset. So an event that is read
again is taken only if its id, type and tenant are those that were noted.
"""

from __future__ import annotations

from typing import NamedTuple

from dispatcher.core.event.decode import Event, EventRecord, InvalidEvent, decode
from dispatcher.core.retry.records import BODY_EXPIRED


class ExpectedEvent(NamedTuple):
    """What was noted of an event."""

    id: str
    type: str
    tenant: str | None


class EventLost(ValueError):
    """The event can't be had any more. `reason` is `BODY_EXPIRED` or `BODY_UNREADABLE`; the message is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def read_again(record: EventRecord | None, topic: str, partition: int, expected: ExpectedEvent) -> Event:
    """The event of a record that was read again where it was published. None: there is no record any more.

    Raises EventLost.
    """
    if record is None:
        raise EventLost(BODY_EXPIRED, "the event has been deleted from its topic")
    try:
        event = decode(record, topic, partition)
    except InvalidEvent as error:
        raise EventLost(
            BODY_EXPIRED, f"another record stands where the event was published: {error.detail}"
        ) from error
    check_same(event, expected)
    return event


def check_same(event: Event, expected: ExpectedEvent) -> None:
    """Raise EventLost unless the event is the one that was noted."""
    if (event.id, event.type, event.tenant) != expected:
        raise EventLost(
            BODY_EXPIRED, "another event stands where this one was published: the topic was made anew"
        )
